//! The iroh endpoint: sockets, iroh relays, and how endpoint ids become addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use iroh::{
    Endpoint, RelayMode, RelayUrl, SecretKey,
    address_lookup::{AddressLookupBuilder, PkarrPublisher, PkarrResolver, memory::MemoryLookup},
    endpoint::{BindError, BindOpts, PortmapperConfig, QuicTransportConfig, VarInt, presets},
    tls::CaTlsConfig,
};
use iroh_mainline_address_lookup::DhtAddressLookup;
use iroh_mdns_address_lookup::MdnsAddressLookup;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use url::Url;

use super::{
    GossipError, addresses,
    config::{DiscoveryConfig, EndpointConfig, IrohRelays},
    links::Links,
};

/// A frozen neighbor holds up everything that is sent to the others, for as long as its connection
/// is believed to live.
const IDLE_TIMEOUT_MS: u32 = 6_000;
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// What a connection may hold in memory that nobody has read yet, in bytes: in all, and of one
/// stream. The library's own bound is none.
const RECEIVE_WINDOW: u32 = 4 << 20;
const STREAM_WINDOW: u32 = 1 << 20;
/// Streams that a peer may have open on one connection. A fetch takes a bidirectional one; gossip
/// takes a unidirectional one for each topic, of which there are at most 100, and one that it closed
/// counts until all of it arrived.
const BIDI_STREAMS: u32 = 64;
const UNI_STREAMS: u32 = 128;

/// How often our addresses are put into the DHT again. The lookup itself tries a failed put only at
/// the next round, so this is also how long a gateway that started without a network stays hidden.
const ADDRESSES_AGAIN: Duration = Duration::from_secs(60);

/// Opens the endpoint's sockets. Needs no network: nothing is resolved or contacted before it
/// returns.
///
/// # Errors
/// When the address is taken or not ours, or a setting is malformed.
pub async fn bind(
    config: &EndpointConfig,
    discovery: &DiscoveryConfig,
    key: SecretKey,
    configured: MemoryLookup,
    links: Links,
) -> Result<Endpoint, GossipError> {
    let transport = QuicTransportConfig::builder()
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .keep_alive_interval(KEEP_ALIVE)
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .build();
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(key)
        .relay_mode(relay_mode(&config.iroh_relays)?)
        .transport_config(transport)
        .hooks(links)
        .clear_ip_transports();
    for (address, required) in sockets(config.bind) {
        let options = BindOpts::default().set_is_required(required);
        builder = builder
            .bind_addr_with_opts(address, options)
            .map_err(|error| bind_error(config.bind, &error))?;
    }
    if let Some(authorities) = authorities(&config.ca_file).await? {
        builder = builder.ca_tls_config(CaTlsConfig::embedded().with_extra_roots(authorities));
    }
    for address in &config.external_addresses {
        builder = builder.external_addr(*address);
    }
    if config.bind.ip().is_loopback() {
        // Nobody outside this machine is to reach us: do not ask routers to forward a port.
        builder = builder.portmapper_config(PortmapperConfig::Disabled);
    }
    let pkarr_relay = pkarr_relay(&config.pkarr_relay)?;
    let endpoint = builder.bind().await.map_err(|error| match error {
        BindError::Sockets { ref source, .. } => bind_error(config.bind, source),
        ref other => bind_error(config.bind, other),
    })?;

    let lookups = endpoint.address_lookup().map_err(|_| GossipError::Closed)?;
    lookups.add(configured);
    if let Some(url) = pkarr_relay {
        let filter = addresses::filter(discovery.dht_private_addresses);
        add(&endpoint, "pkarr relay", PkarrPublisher::builder(url.clone()).addr_filter(filter));
        add(&endpoint, "pkarr relay", PkarrResolver::builder(url));
    }
    Ok(endpoint)
}

/// Adds the lookup on the local network. `None` when this machine has no usable interface.
pub fn add_mdns(endpoint: &Endpoint, service: &str) -> Option<MdnsAddressLookup> {
    match MdnsAddressLookup::builder().service_name(service).build(endpoint.id()) {
        Ok(mdns) => {
            endpoint.address_lookup().ok()?.add(mdns.clone());
            Some(mdns)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot look for gateways on the local network (mDNS)");
            None
        }
    }
}

/// Adds addresses that are only believed to be right. They may change at any time.
pub fn add_hints(endpoint: &Endpoint, hints: MemoryLookup) {
    if let Ok(lookups) = endpoint.address_lookup() {
        lookups.add(hints);
    }
}

/// Adds the lookup in the Mainline DHT. `bootstrap` holds addresses, no names: a name would be
/// resolved here and now, on this thread.
pub fn add_dht(endpoint: &Endpoint, bootstrap: &[SocketAddr], private_too: bool) {
    let mut dht = n0_mainline::DhtBuilder::default();
    dht.bootstrap(bootstrap);
    let lookup = DhtAddressLookup::builder()
        .dht_builder(dht)
        .republish_delay(ADDRESSES_AGAIN)
        .addr_filter(addresses::filter(private_too));
    add(endpoint, "Mainline DHT", lookup);
}

/// A lookup that cannot start is a step of the ladder that is missing, not a reason to stay down.
fn add(endpoint: &Endpoint, name: &str, builder: impl AddressLookupBuilder) {
    let Ok(lookups) = endpoint.address_lookup() else { return };
    match builder.into_address_lookup(endpoint) {
        Ok(lookup) => lookups.add(lookup),
        Err(error) => tracing::warn!(%error, "cannot look addresses up by {name}"),
    }
}

/// The sockets for `endpoint.bind`, and whether each must succeed. An unspecified address means all
/// interfaces, so the other address family gets the same port if it can be had.
fn sockets(bind: SocketAddr) -> Vec<(SocketAddr, bool)> {
    let mut sockets = vec![(bind, true)];
    if bind.ip().is_unspecified() {
        let other: IpAddr = match bind {
            SocketAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
        };
        sockets.push((SocketAddr::new(other, bind.port()), false));
    }
    sockets
}

fn bind_error(address: SocketAddr, error: &dyn std::error::Error) -> GossipError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        cause = error.source();
    }
    GossipError::Bind { address, reason }
}

fn relay_mode(relays: &IrohRelays) -> Result<RelayMode, GossipError> {
    match relays {
        IrohRelays::Default => Ok(RelayMode::Default),
        IrohRelays::Disabled => Ok(RelayMode::Disabled),
        IrohRelays::Urls(urls) => {
            let urls = urls.iter().map(|url| {
                url.parse::<RelayUrl>().map_err(|error| GossipError::Setting {
                    setting: "endpoint.iroh_relays",
                    reason: format!("{url:?} is no URL ({error})"),
                })
            });
            Ok(RelayMode::custom(urls.collect::<Result<Vec<_>, _>>()?))
        }
    }
}

/// The certificates of `endpoint.ca_file`.
async fn authorities(file: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, GossipError> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let wrong = |reason: String| GossipError::Setting {
        setting: "endpoint.ca_file",
        reason: format!("{}: {reason}", file.display()),
    };
    let pem = tokio::fs::read(file).await.map_err(|error| wrong(error.to_string()))?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match found.map_err(|error| wrong(error.to_string()))? {
        none if none.is_empty() => Err(wrong("there is no certificate in it (PEM)".to_owned())),
        found => Ok(Some(found)),
    }
}

fn pkarr_relay(url: &str) -> Result<Option<Url>, GossipError> {
    if url.is_empty() {
        return Ok(None);
    }
    let wrong = |reason| GossipError::Setting { setting: "endpoint.pkarr_relay", reason };
    let url: Url = url.parse().map_err(|error| wrong(format!("{url:?} is no URL ({error})")))?;
    // The packets go to BASE/KEY: a URL that cannot be a base would fail at every request.
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong(format!("{url}: want an http or https URL")));
    }
    Ok(Some(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(bind: SocketAddr) -> EndpointConfig {
        EndpointConfig { bind, iroh_relays: IrohRelays::Disabled, ..EndpointConfig::default() }
    }

    #[tokio::test]
    async fn a_port_in_use_names_the_setting() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let result = bind(
            &on(address),
            &DiscoveryConfig::default(),
            SecretKey::generate(),
            MemoryLookup::new(),
            Links::default(),
        )
        .await;
        let error = result.map(drop).unwrap_err().to_string();
        assert!(error.starts_with("endpoint.bind: "), "{error}");
        assert!(error.contains(&address.to_string()) && error.contains("in use"), "{error}");
    }

    #[test]
    fn malformed_urls_name_the_setting() {
        let error = relay_mode(&IrohRelays::Urls(vec!["defualt".into()])).unwrap_err();
        assert!(error.to_string().starts_with("endpoint.iroh_relays: "), "{error}");
        for bad in ["nonsense", "ftp://example.com"] {
            let error = pkarr_relay(bad).unwrap_err();
            assert!(error.to_string().starts_with("endpoint.pkarr_relay: "), "{error}");
        }
        assert!(pkarr_relay("").unwrap().is_none());
    }

    #[tokio::test]
    async fn a_file_without_authorities_names_the_setting() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent.pem");
        let (empty, cut) = (folder.path().join("empty.pem"), folder.path().join("cut.pem"));
        std::fs::write(&empty, "nothing that begins like a certificate\n").unwrap();
        std::fs::write(&cut, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
        for file in [&absent, &empty, &cut] {
            let error = authorities(file).await.unwrap_err().to_string();
            let begins = format!("endpoint.ca_file: {}: ", file.display());
            assert!(error.starts_with(&begins), "{error}");
        }
        assert!(authorities(Path::new("")).await.unwrap().is_none());
    }

    #[test]
    fn all_interfaces_means_both_families() {
        let families = |bind: &str| sockets(bind.parse().unwrap()).len();
        assert_eq!(families("0.0.0.0:4000"), 2);
        assert_eq!(families("[::]:0"), 2);
        assert_eq!(families("127.0.0.1:0"), 1);
    }
}
