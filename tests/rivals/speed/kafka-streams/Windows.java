import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.Locale;
import java.util.Properties;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;

/**
 * Kafka Streams' side of the speed comparison: one-minute windows of device and metric over the whole topic of
 * readings.
 *
 * <pre>java Windows BOOTSTRAP INPUT OUTPUT READINGS STATE_FOLDER</pre>
 *
 * Both topics must be there. Prints one JSON object: the readings a second and the CPU seconds of this process, from
 * the first record processed to the last one, and the rate over the second half alone, when the JVM is warm.
 *
 * The processor API and not the DSL: the readings have no message key, and the DSL would send each of them through one
 * more topic to group them, which one Kafka partition does not need. Each window goes to the output topic once, when a
 * later one begins; the last windows at the end of the run, so that all can be counted.
 */
public final class Windows {
    private static final long WINDOW_MILLIS = 60_000;
    private static final String STORE = "windows";
    private static final Duration PATIENCE = Duration.ofMinutes(15);
    private static final JsonFactory JSON = new JsonFactory();

    private record Reading(String series, double value, long eventTime) {}

    /** What a window keeps: Welford's mean and m2 give a variance that does not lose its digits. */
    private record Summary(long count, double sum, double min, double max, double mean, double m2) {
        static final Summary EMPTY = new Summary(0, 0, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY, 0, 0);

        Summary with(double value) {
            double delta = value - mean;
            double newMean = mean + delta / (count + 1);
            return new Summary(count + 1, sum + value, Math.min(min, value), Math.max(max, value), newMean,
                m2 + delta * (value - newMean));
        }

        byte[] toBytes() {
            return ByteBuffer.allocate(48)
                .putLong(count).putDouble(sum).putDouble(min).putDouble(max).putDouble(mean).putDouble(m2).array();
        }

        static Summary ofBytes(byte[] bytes) {
            ByteBuffer from = ByteBuffer.wrap(bytes);
            return new Summary(from.getLong(), from.getDouble(), from.getDouble(), from.getDouble(), from.getDouble(),
                from.getDouble());
        }

        String toJson(long windowStart) {
            return "{\"window_start\":" + windowStart + ",\"n\":" + count + ",\"sum\":" + sum + ",\"min\":" + min
                + ",\"max\":" + max + ",\"variance\":" + (count > 1 ? m2 / (count - 1) : 0) + "}";
        }
    }

    private record Moment(long nanos, double cpuSeconds) {
        static Moment now() {
            var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
            return new Moment(System.nanoTime(), system.getProcessCpuTime() / 1e9);
        }

        double secondsTo(Moment later) {
            return (later.nanos - nanos) / 1e9;
        }
    }

    private record Report(Moment first, Moment half, Moment last) {}

    private static Reading parse(byte[] message) {
        String device = null;
        String metric = null;
        double value = 0;
        long eventTime = 0;
        try (JsonParser parser = JSON.createParser(message)) {
            parser.nextToken();
            while (parser.nextToken() == JsonToken.FIELD_NAME) {
                String field = parser.currentName();
                parser.nextToken();
                switch (field) {
                    case "device_id" -> device = parser.getText();
                    case "metric" -> metric = parser.getText();
                    case "value" -> value = parser.getDoubleValue();
                    case "event_time" -> eventTime = parser.getLongValue();
                    default -> parser.skipChildren();
                }
            }
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return new Reading(device + '|' + metric, value, eventTime);
    }

    private static final class Aggregate implements Processor<byte[], Reading, String, String> {
        private final long expected;
        private final CompletableFuture<Report> done;
        private ProcessorContext<String, String> context;
        private WindowStore<String, Summary> store;
        private long taken;
        private long open = Long.MIN_VALUE;
        private Moment first;
        private Moment half;

        Aggregate(long expected, CompletableFuture<Report> done) {
            this.expected = expected;
            this.done = done;
        }

        @Override
        public void init(ProcessorContext<String, String> context) {
            this.context = context;
            store = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<byte[], Reading> message) {
            if (taken == expected) {
                throw new IllegalStateException("more than " + expected + " readings");
            }
            if (taken == 0) {
                first = Moment.now();
            }
            Reading reading = message.value();
            long window = reading.eventTime - Math.floorMod(reading.eventTime, WINDOW_MILLIS);
            if (window > open) {
                emit();
                open = window;
            }
            Summary before = store.fetch(reading.series, window);
            store.put(reading.series, (before == null ? Summary.EMPTY : before).with(reading.value), window);
            taken++;
            if (taken == expected / 2) {
                half = Moment.now();
            } else if (taken == expected) {
                Moment last = Moment.now();
                emit();
                done.complete(new Report(first, half, last));
            }
        }

        /** Sends the results of the open window. The readings come in the order of their event times. */
        private void emit() {
            if (open == Long.MIN_VALUE) {
                return;
            }
            Instant start = Instant.ofEpochMilli(open);
            try (var windows = store.fetchAll(start, start)) {
                while (windows.hasNext()) {
                    var entry = windows.next();
                    context.forward(new Record<>(entry.key.key(), entry.value.toJson(open), open));
                }
            }
        }
    }

    private static <T> Serde<T> serde(Serializer<T> serializer, Deserializer<T> deserializer) {
        return Serdes.serdeFrom(serializer, deserializer);
    }

    private static Topology topology(String input, String output, long expected, CompletableFuture<Report> done) {
        Serde<Summary> summaries =
            serde((topic, summary) -> summary == null ? null : summary.toBytes(),
                (topic, bytes) -> bytes == null ? null : Summary.ofBytes(bytes));
        Deserializer<Reading> readings = (topic, bytes) -> parse(bytes);
        // In memory, with a changelog as exactly once needs it. The cache in front of it sends one change of each
        // window to the changelog at a commit, and not one for each reading.
        var windows = Stores.inMemoryWindowStore(STORE, Duration.ofMillis(2 * WINDOW_MILLIS),
            Duration.ofMillis(WINDOW_MILLIS), false);
        return new Topology()
            .addSource("readings", Serdes.ByteArray().deserializer(), readings, input)
            .addProcessor("aggregate", () -> new Aggregate(expected, done), "readings")
            .addStateStore(Stores.windowStoreBuilder(windows, Serdes.String(), summaries).withCachingEnabled(),
                "aggregate")
            .addSink("results", output, Serdes.String().serializer(), Serdes.String().serializer(), "aggregate");
    }

    private static Properties settings(String bootstrap, String output, Path state) {
        Properties settings = new Properties();
        // A fresh output topic is a fresh application: no earlier run's offsets.
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, output);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        // As often as Wye's epochs; the default under exactly once, 100 ms, costs more.
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 10_000);
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64 * 1024 * 1024);
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 8 * 1024 * 1024);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.CHECK_CRCS_CONFIG), false);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        return settings;
    }

    public static void main(String[] arguments) throws Exception {
        String bootstrap = arguments[0];
        String input = arguments[1];
        String output = arguments[2];
        long expected = Long.parseLong(arguments[3]);
        Path state = Path.of(arguments[4]);
        var done = new CompletableFuture<Report>();
        var streams = new KafkaStreams(topology(input, output, expected, done), settings(bootstrap, output, state));
        streams.setUncaughtExceptionHandler(error -> {
            done.completeExceptionally(error);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Report report;
        try (streams) {
            streams.start();
            report = done.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        }
        System.out.printf(Locale.ROOT, "{\"rate\": %.0f, \"warm_rate\": %.0f, \"cpu_seconds\": %.2f}%n",
            expected / report.first.secondsTo(report.last),
            (expected - expected / 2) / report.half.secondsTo(report.last),
            report.last.cpuSeconds - report.first.cpuSeconds);
    }
}
