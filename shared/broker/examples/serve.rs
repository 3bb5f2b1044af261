//! The embedded broker alone, to try clients on: prints where it is and serves until it is killed.
//!
//! `cargo run --release -p wye-broker --example serve -- DIRECTORY [PORT]`

#![expect(clippy::print_stdout, reason = "it says where it is")]

use wye_broker::{Broker, BrokerConfig, BrokerError, Port};

#[tokio::main]
async fn main() -> Result<(), BrokerError> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("usage: serve DIRECTORY [PORT]");
    let port = arguments.next().map_or(Port::Free, |port| Port::Only(port.parse().expect("a port")));
    let broker = Broker::start(BrokerConfig { port, ..BrokerConfig::new(directory) }).await?;
    println!("{}", broker.bootstrap_servers());
    std::future::pending().await
}
