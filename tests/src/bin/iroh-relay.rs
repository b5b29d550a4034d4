//! An iroh relay of one's own, built together with the scenarios: in plain HTTP, or in HTTPS under a
//! certificate that it makes, and then also telling endpoints how they look from outside.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use clap::Parser;
use iroh_relay::{
    defaults::DEFAULT_RELAY_QUIC_PORT,
    server::{CertConfig, QuicConfig, RelayConfig, Server, ServerConfig, TlsConfig},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::rustls;

#[derive(Parser)]
struct Arguments {
    /// IP:PORT of the HTTP listener
    #[arg(long)]
    bind: SocketAddr,
    /// IP:PORT of the HTTPS listener; the certificate is for this address
    #[arg(long, requires = "certificate")]
    https: Option<SocketAddr>,
    /// The file into which the certificate is written (PEM)
    #[arg(long)]
    certificate: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let mut relay = RelayConfig::new(arguments.bind);
    let mut config = ServerConfig::default();
    if let (Some(https), Some(file)) = (arguments.https, arguments.certificate) {
        let (pem, server_config) = certified(https.ip())?;
        std::fs::write(file, pem)?;
        relay.tls = Some(TlsConfig::new(https, CertConfig::Manual { server_config }));
        config.quic = Some(QuicConfig::new((https.ip(), DEFAULT_RELAY_QUIC_PORT)));
    }
    config.relay = Some(relay);
    let relay = Server::spawn(config).await?;
    println!("ready");
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    relay.shutdown().await?;
    Ok(())
}

/// A certificate for this address that is its own authority, and what serves under it.
fn certified(address: IpAddr) -> anyhow::Result<(String, rustls::ServerConfig)> {
    let made = rcgen::generate_simple_self_signed([address.to_string()])?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())?;
    Ok((made.cert.pem(), config))
}
