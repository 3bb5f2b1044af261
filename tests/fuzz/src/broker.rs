//! The embedded broker, through its port: any bytes of a client, and any record batch in a produce request.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;
use wye_broker::{Broker, BrokerConfig};

use crate::Outcome;
use crate::files::directory;

/// The number of clients after which the broker is replaced by a new one with an empty directory.
const CLIENTS: u32 = 2_000;
/// Longer than any response takes.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The name of the topic, with its length.
const TOPIC: &[u8] = b"\0\x01t";
/// Bytes before the records of a record batch.
const BATCH_HEADER: usize = 61;

/// A client that sends bytes and then nothing more. The first byte is not sent; if it is odd, the others are one frame.
pub(crate) fn request(bytes: &[u8]) -> Outcome {
    let Some((form, bytes)) = bytes.split_first() else { return Ok(()) };
    let sent = if form % 2 == 1 { frame(bytes) } else { bytes.to_vec() };
    exchange(&sent)?;
    Ok(())
}

/// A record batch, with length, format and checksum corrected so that its other fields are checked.
pub(crate) fn batch(bytes: &[u8]) -> Outcome {
    if bytes.len() < BATCH_HEADER {
        return Ok(());
    }
    let mut batch = bytes.to_vec();
    batch[0..8].fill(0);
    batch[8..12].copy_from_slice(&((bytes.len() - 12) as i32).to_be_bytes());
    batch[16] = 2;
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
    let response = exchange(&frame(&produce(&batch)))?;
    assert!(response.len() > 16, "a produce request has no response");
    Ok(())
}

/// A produce request of version 7.
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

/// A broker in its own runtime.
struct Running {
    broker: Broker,
    runtime: Runtime,
    _directory: TempDir,
    clients: u32,
}

impl Running {
    fn start() -> Result<Self> {
        let directory = directory()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let start = Broker::start(BrokerConfig::new(directory.path()));
        let broker = runtime.block_on(start).map_err(Error::other)?;
        send(&broker, &frame(&create_topic()))?;
        Ok(Self { broker, runtime, _directory: directory, clients: 0 })
    }
}

/// Sends bytes on a new connection, and returns all bytes of the responses.
fn exchange(sent: &[u8]) -> Result<Vec<u8>> {
    static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = running.take_if(|running| running.clients == CLIENTS) {
        old.runtime.block_on(old.broker.stop());
    }
    let running = match &mut *running {
        Some(running) => running,
        none => none.insert(Running::start()?),
    };
    running.clients += 1;
    send(&running.broker, sent)
}

fn send(broker: &Broker, sent: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(broker.bootstrap_servers())?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // The broker may close the connection before it has read everything.
    let _ = stream.write_all(sent);
    let _ = stream.shutdown(Shutdown::Write);
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(Error::other("there is no response, and the connection stays open"))
        }
        // The broker may also reset the connection.
        _ => Ok(received),
    }
}
