//! A node that knows nothing of nostr-gateway: distributed-topic-tracker as it comes, with its own
//! DHT client. Lines on standard input are broadcast; what arrives is printed.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "test code fails loudly")]

use clap::Parser;
use distributed_topic_tracker::{AutoDiscoveryGossip, Config, RecordPublisher, TopicId};
use ed25519_dalek::SigningKey;
use iroh::{Endpoint, RelayMode, SecretKey, address_lookup::AddrFilter, endpoint::presets};
use iroh_gossip::{api::Event, net::Gossip};
use iroh_mainline_address_lookup::DhtAddressLookup;
use tokio::io::{AsyncBufReadExt, BufReader};

#[derive(Parser)]
struct Arguments {
    /// The topic's name
    #[arg(long)]
    topic: String,
    /// The initial secret of the topic's DHT records
    #[arg(long, default_value = "nostr-gateway")]
    secret: String,
    /// IP:PORT of the QUIC socket
    #[arg(long)]
    bind: std::net::SocketAddr,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let secret_key = SecretKey::generate();
    let signing_key = SigningKey::from_bytes(&secret_key.to_bytes());

    // Without iroh relays there are only direct addresses to publish.
    let lookup = DhtAddressLookup::builder().addr_filter(AddrFilter::unfiltered());
    let endpoint = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .secret_key(secret_key)
        .clear_ip_transports()
        .bind_addr(arguments.bind)?
        .address_lookup(lookup)
        .bind()
        .await?;
    let gossip = Gossip::builder().spawn(endpoint.clone());
    let _router = iroh::protocol::Router::builder(endpoint.clone())
        .accept(iroh_gossip::ALPN, gossip.clone())
        .spawn();
    println!("endpoint {}", endpoint.id());

    let publisher = RecordPublisher::new(
        TopicId::new(arguments.topic),
        signing_key,
        None,
        arguments.secret.into_bytes(),
        Config::default(),
    );
    let topic = gossip.subscribe_and_join_with_auto_discovery(publisher).await?;
    let (sender, mut receiver) = topic.split().await?;
    println!("joined");

    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            sender.broadcast(line.into_bytes()).await.unwrap();
        }
    });
    loop {
        match receiver.next().await {
            Ok(Event::Received(message)) => {
                println!("received {}", String::from_utf8_lossy(&message.content));
            }
            Ok(Event::NeighborUp(id)) => println!("up {id}"),
            Ok(Event::NeighborDown(id)) => println!("down {id}"),
            Ok(Event::Lagged) => println!("lagged"),
            Err(error) => anyhow::bail!("the topic ended: {error:?}"),
        }
    }
}
