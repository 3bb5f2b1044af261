//! The embedded broker alone, to try clients with it: prints its address and serves until it is killed.
//!
//! `cargo run --release -p wye-broker --example serve -- DIRECTORY [PORT]`

#![expect(clippy::print_stdout, reason = "it prints its address")]

use std::error::Error;

use wye_broker::{Broker, BrokerConfig, Port};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: serve DIRECTORY [PORT]")?;
    let port = match arguments.next() {
        None => Port::Free,
        Some(port) => Port::Only(port.parse().map_err(|_| format!("{port:?} is not a port"))?),
    };
    let broker = Broker::start(BrokerConfig { port, ..BrokerConfig::new(directory) }).await?;
    println!("{}", broker.bootstrap_servers());
    std::future::pending().await
}
