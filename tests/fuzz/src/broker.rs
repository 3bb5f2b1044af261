//! The embedded broker, through its port: what a client may send, and what a producer may put into a request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use wye_broker::{Broker, BrokerConfig};

use crate::files::directory;

/// A broker answers so many clients before another one, with an empty directory, takes its place.
const CLIENTS: u32 = 2_000;
/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
const TOPIC: &[u8] = b"\0\x01t";
/// Bytes before the records of a record batch.
const BATCH_HEADER: usize = 61;

/// What a client sends, as it is or, where the first byte is odd, as one frame; then it sends nothing more.
pub(crate) fn request(bytes: &[u8]) {
    let Some((form, bytes)) = bytes.split_first() else { return };
    let sent = if form % 2 == 1 { frame(bytes) } else { bytes.to_vec() };
    let _ = exchange(&sent);
}

/// A record batch, with length, format and checksum put right so that a look at its content follows.
pub(crate) fn batch(bytes: &[u8]) {
    if bytes.len() < BATCH_HEADER {
        return;
    }
    let mut batch = bytes.to_vec();
    batch[0..8].fill(0);
    batch[8..12].copy_from_slice(&((bytes.len() - 12) as i32).to_be_bytes());
    batch[16] = 2;
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    let answer = exchange(&frame(&produce(&batch)));
    assert!(answer.len() > 16, "a produce request was not answered");
}

/// A request to store a record batch, of version 7.
fn produce(batch: &[u8]) -> Vec<u8> {
    let mut request = header(0, 7);
    request.extend([0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x27, 0x10]); // no transaction, all replicas, 10 s
    request.extend(1_i32.to_be_bytes());
    request.extend(TOPIC);
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend((batch.len() as i32).to_be_bytes());
    request.extend(batch);
    request
}

/// A request to create the topic with one Kafka partition, of version 2.
fn create_topic() -> Vec<u8> {
    let mut request = header(19, 2);
    request.extend(1_i32.to_be_bytes());
    request.extend(TOPIC);
    request.extend(1_i32.to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend([0; 8]); // no assignment, no settings
    request.extend(10_000_i32.to_be_bytes());
    request.push(0);
    request
}

fn header(key: i16, version: i16) -> Vec<u8> {
    [&key.to_be_bytes()[..], &version.to_be_bytes(), &7_i32.to_be_bytes(), &(-1_i16).to_be_bytes()].concat()
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
}

struct Running {
    broker: Broker,
    _directory: TempDir,
    clients: u32,
}

/// Sends bytes on a connection of their own, and returns all that is answered.
fn exchange(sent: &[u8]) -> Vec<u8> {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().expect("threads can be had")
    });
    static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = running.take_if(|running| running.clients == CLIENTS) {
        RUNTIME.block_on(old.broker.stop());
    }
    let running = running.get_or_insert_with(|| {
        let directory = directory().expect("there is room for a broker");
        let config = BrokerConfig::new(directory.path());
        let broker = RUNTIME.block_on(Broker::start(config)).expect("a broker starts in an empty directory");
        talk(&broker, &frame(&create_topic()));
        Running { broker, _directory: directory, clients: 0 }
    });
    running.clients += 1;
    talk(&running.broker, sent)
}

fn talk(broker: &Broker, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(broker.bootstrap_servers()).expect("a broker takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    // The broker may hang up before it has taken everything.
    let _ = stream.write_all(sent);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "no answer, and the connection stays open");
    }
    answer
}
