//! A whole cluster and a client in one program: `cargo run --release --example embed`.

use wpaxos::{
    client::{Client, Options, Swap},
    command::Expect,
    local::{LocalCluster, LocalOptions},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cluster = LocalCluster::start(LocalOptions { zones: 3, nodes: 1, shards: 2, ..LocalOptions::default() })?;
    let mut client = Client::connect(Options::to(cluster.seeds()))?;

    let version = client.put(b"greeting", b"hello")?;
    println!("greeting is at version {version}");
    match client.compare_and_swap(b"greeting", Expect::Version(version), b"good day")? {
        Swap::Swapped { version } => println!("greeting was swapped, and is at version {version}"),
        Swap::Failed { version } => println!("somebody was faster: it is at version {version}"),
    }

    let keys = ["greeting", "no such key"];
    for (key, answer) in keys.iter().zip(client.get_many(&keys)?) {
        match answer? {
            Some((value, version)) => println!("{key}: {} (version {version})", value.escape_ascii()),
            None => println!("{key}: not found"),
        }
    }

    cluster.stop()?;
    Ok(())
}
