//! Whether the network lets a gateway work: what `nostr-gateway doctor` tells of it.
//!
//! A running gateway looks with what it has open; without one, an endpoint and a DHT client are opened
//! for the time of the checks, under a key of their own.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use iroh::{
    Endpoint, RelayMode, SecretKey, Watcher as _, address_lookup::memory::MemoryLookup,
    endpoint::RelayStatus, unstable_net_report::NetReport,
};
use mainline::async_dht::AsyncDht;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{
    Gossip,
    config::{DiscoveryConfig, EndpointConfig, IrohRelays},
    dht, endpoint,
    links::Links,
};
use crate::tasks;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    /// It works, but not as well as it could.
    Warning,
    Failed,
    /// Nobody could be asked, or it is switched off.
    NotChecked,
}

/// One line of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub what: String,
    pub verdict: Verdict,
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl Check {
    pub fn new(what: &str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self { what: what.to_owned(), verdict, found: found.into(), advice: None }
    }

    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// What each check is about.
const UDP: &str = "UDP";
const DHT: &str = "DHT";
const MDNS: &str = "mDNS";
const RELAY: &str = "iroh relay";
const NAT: &str = "NAT";
const MAPPING: &str = "port mapping";
/// Not of the network; here so that all names of checks stand together.
pub const KEYRING: &str = "keyring";

/// How long names, the DHT, an iroh relay, a router may take to answer.
const DNS_ANSWERS: Duration = Duration::from_secs(10);
const DHT_ANSWERS: Duration = Duration::from_secs(10);
const RELAY_ANSWERS: Duration = Duration::from_secs(10);
const ROUTER_ANSWERS: Duration = Duration::from_secs(6);
/// A multicast message to ourselves.
const ECHO: Duration = Duration::from_secs(1);

/// The group of mDNS. The port is our own: the one of mDNS may be somebody else's.
const MDNS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// The checks without a running gateway.
pub async fn network(config: &EndpointConfig, discovery: &DiscoveryConfig) -> Vec<Check> {
    // It is not to be found under this key.
    let quiet = EndpointConfig { pkarr_relay: String::new(), ..config.clone() };
    let key = SecretKey::generate();
    let opened =
        endpoint::bind(&quiet, discovery, key, MemoryLookup::new(), Links::default()).await;
    let client = async {
        if !discovery.dht {
            return None;
        }
        match timeout(DNS_ANSWERS, dht::attempt(dht::names(discovery))).await {
            Ok(attempt) => Some(attempt.map(|(client, _)| client)),
            Err(_) => Some(Err("the names of the bootstrap nodes are not found".to_owned())),
        }
    };
    match opened {
        Ok(endpoint) => {
            let checks = look(&endpoint, config, discovery, client).await;
            endpoint.close().await;
            checks
        }
        Err(error) => {
            let advice = "stop the program that has this port, or choose another address in \
                          endpoint.bind";
            let udp = Check::new(UDP, Verdict::Failed, error.to_string()).advise(advice);
            let (dht, mdns) = tokio::join!(check_dht(client), check_mdns(discovery.mdns));
            let unasked = |what| Check::new(what, Verdict::NotChecked, "needs UDP");
            vec![udp, dht, mdns, unasked(RELAY), unasked(NAT), unasked(MAPPING)]
        }
    }
}

impl Gossip {
    /// The checks of a running gateway.
    pub async fn check(&self, config: &EndpointConfig, discovery: &DiscoveryConfig) -> Vec<Check> {
        let unresolved = || "none of the bootstrap nodes has an IPv4 address".to_owned();
        let client = self.dht.as_ref().map(|dht| dht.now().ok_or_else(unresolved));
        look(&self.net.endpoint(), config, discovery, std::future::ready(client)).await
    }
}

async fn look(
    endpoint: &Endpoint,
    config: &EndpointConfig,
    discovery: &DiscoveryConfig,
    client: impl Future<Output = Option<Result<AsyncDht, String>>>,
) -> Vec<Check> {
    let bound: Vec<_> = endpoint.bound_sockets().iter().map(ToString::to_string).collect();
    let udp = Check::new(UDP, Verdict::Ok, format!("bound to {}", bound.join(" and ")));
    let (dht, mdns, [relay, nat], mapping) = tokio::join!(
        check_dht(client),
        check_mdns(discovery.mdns),
        check_from_outside(endpoint, config),
        check_mapping(config),
    );
    vec![udp, dht, mdns, relay, nat, mapping]
}

async fn check_dht(client: impl Future<Output = Option<Result<AsyncDht, String>>>) -> Check {
    const ADVICE: &str = "check the network, DNS, and that the firewall lets UDP out; gateways on \
                          the local network and discovery.peers are found without the DHT";
    let client = match client.await {
        None => return Check::new(DHT, Verdict::NotChecked, "switched off (discovery.dht)"),
        Some(Err(why)) => return Check::new(DHT, Verdict::Failed, why).advise(ADVICE),
        Some(Ok(client)) => client,
    };
    if timeout(DHT_ANSWERS, client.bootstrapped()).await != Ok(true) {
        return Check::new(DHT, Verdict::Failed, "no node of the DHT answers").advise(ADVICE);
    }
    let known = client.to_bootstrap().await.len();
    let seen = match client.info().await.public_address() {
        Some(address) => format!(", they see us as {address}"),
        None => String::new(),
    };
    Check::new(DHT, Verdict::Ok, format!("{known} nodes answer{seen}"))
}

async fn check_mdns(on: bool) -> Check {
    const ADVICE: &str = "gateways on the local network are not found without multicast: allow UDP \
                          to 224.0.0.251, or name them in discovery.peers";
    if !on {
        return Check::new(MDNS, Verdict::NotChecked, "switched off (discovery.mdns)");
    }
    match tasks::blocking(hear_ourselves).await.and_then(|heard| heard) {
        Ok(()) => Check::new(MDNS, Verdict::Ok, "multicast works on this machine"),
        Err(error) => {
            let found = format!("no multicast: {error}");
            Check::new(MDNS, Verdict::Warning, found).advise(ADVICE)
        }
    }
}

/// Sends a message to the group of mDNS and waits for it. Blocks.
fn hear_ourselves() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.join_multicast_v4(&MDNS_GROUP, &Ipv4Addr::UNSPECIFIED)?;
    socket.set_multicast_loop_v4(true)?;
    socket.set_read_timeout(Some(ECHO))?;
    let said = rand::random::<[u8; 16]>();
    socket.send_to(&said, (MDNS_GROUP, socket.local_addr()?.port()))?;
    let mut heard = [0; 64];
    // Others may use the port too; not for long.
    for _ in 0..16 {
        let length = socket.recv(&mut heard)?;
        if heard[..length] == said {
            return Ok(());
        }
    }
    Err(io::Error::other("our own message does not come back"))
}

/// What the iroh relays say: whether they are there, and how we look from there.
async fn check_from_outside(endpoint: &Endpoint, config: &EndpointConfig) -> [Check; 2] {
    if config.iroh_relays == IrohRelays::Disabled {
        let off = "switched off (endpoint.iroh_relays)";
        let relay = Check::new(RELAY, Verdict::NotChecked, off);
        let nat = Check::new(NAT, Verdict::NotChecked, "no iroh relay to ask from outside");
        return [relay, nat];
    }
    let mut watching = endpoint.net_report();
    let report = timeout(RELAY_ANSWERS, watching.initialized()).await.ok();
    let mut homes = endpoint.home_relay_status();
    let connected = async {
        loop {
            if homes.get().iter().any(RelayStatus::is_connected) || homes.updated().await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(RELAY_ANSWERS / 2, connected).await;
    let bound = endpoint.bound_sockets();
    [check_relay(&homes.get(), report.as_ref()), check_nat(&bound, report.as_ref())]
}

fn check_relay(homes: &[RelayStatus], report: Option<&NetReport>) -> Check {
    const ADVICE: &str = "gateways behind routers find one another over an iroh relay: check the \
                          network, or choose another one in endpoint.iroh_relays";
    if let Some(home) = homes.iter().find(|home| home.is_connected()) {
        let latency = report.and_then(|report| {
            report.relay_latency.iter().filter(|(_, url, _)| *url == home.url()).map(|l| l.2).min()
        });
        let latency = latency.map(|time| format!(", {} ms away", time.as_millis()));
        let found = format!("connected to {}{}", home.url(), latency.unwrap_or_default());
        return Check::new(RELAY, Verdict::Ok, found);
    }
    let why = homes.iter().find_map(|home| Some(format!("{}: {}", home.url(), home.last_error()?)));
    let why = why.unwrap_or_else(|| "no iroh relay answers".to_owned());
    Check::new(RELAY, Verdict::Failed, why).advise(ADVICE)
}

fn check_nat(bound: &[SocketAddr], report: Option<&NetReport>) -> Check {
    let Some(report) = report.filter(|report| report.has_udp()) else {
        return Check::new(NAT, Verdict::NotChecked, "no iroh relay answers over UDP");
    };
    let seen = [report.global_v4.map(SocketAddr::V4), report.global_v6.map(SocketAddr::V6)];
    let seen: Vec<SocketAddr> = seen.into_iter().flatten().collect();
    let names: Vec<_> = seen.iter().map(ToString::to_string).collect();
    let names = names.join(" and ");
    if report.mapping_varies_by_dest() == Some(true) {
        let advice = "connections to gateways behind other routers will go over iroh relays; \
                      forward a UDP port to endpoint.bind and name its outside in \
                      endpoint.external_addresses";
        let found = format!("the router gives each destination another port (seen as {names})");
        return Check::new(NAT, Verdict::Warning, found).advise(advice);
    }
    let keeps_port = seen.iter().any(|seen| bound.iter().any(|own| own.port() == seen.port()));
    let found = match keeps_port {
        true => format!("seen from outside as {names}"),
        false => format!("seen from outside as {names}; hole punching works"),
    };
    Check::new(NAT, Verdict::Ok, found)
}

async fn check_mapping(config: &EndpointConfig) -> Check {
    if config.bind.ip().is_loopback() {
        let found = "switched off: endpoint.bind is a loopback address";
        return Check::new(MAPPING, Verdict::NotChecked, found);
    }
    let client = portmapper::Client::default();
    match timeout(ROUTER_ANSWERS, client.probe()).await {
        Ok(Ok(Ok(found))) if found.upnp || found.pcp || found.nat_pmp => {
            let ways = [(found.upnp, "UPnP"), (found.pcp, "PCP"), (found.nat_pmp, "NAT-PMP")];
            let ways: Vec<_> = ways.iter().filter(|way| way.0).map(|way| way.1).collect();
            let found = format!("the router forwards ports by {}", ways.join(" and "));
            Check::new(MAPPING, Verdict::Ok, found)
        }
        _ => {
            let advice = "where the router cannot be asked, forward a UDP port to endpoint.bind by \
                          hand; hole punching and iroh relays often do without";
            let found = "no router answers UPnP, PCP or NAT-PMP";
            Check::new(MAPPING, Verdict::Warning, found).advise(advice)
        }
    }
}

/// The iroh relays of a configuration, those of others if it names none.
pub fn iroh_relays(config: &EndpointConfig) -> Vec<String> {
    match &config.iroh_relays {
        IrohRelays::Disabled => Vec::new(),
        IrohRelays::Urls(urls) => urls.clone(),
        IrohRelays::Default => {
            let map = RelayMode::Default.relay_map();
            map.urls::<Vec<_>>().iter().map(ToString::to_string).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(varies: Option<bool>, seen: &str) -> NetReport {
        let mut report = NetReport::default();
        report.udp_v4 = true;
        report.mapping_varies_by_dest_ipv4 = varies;
        report.global_v4 = Some(seen.parse().unwrap());
        report
    }

    #[test]
    fn the_report_from_outside_is_put_into_words() {
        let bound = ["0.0.0.0:4433".parse().unwrap()];
        let nat = |report: &NetReport| check_nat(&bound, Some(report));
        let open = nat(&report(Some(false), "203.0.113.7:4433"));
        assert_eq!((open.verdict, open.advice), (Verdict::Ok, None));
        let punched = nat(&report(Some(false), "203.0.113.7:60000"));
        assert!(punched.found.contains("hole punching"), "{}", punched.found);
        let symmetric = nat(&report(Some(true), "203.0.113.7:60000"));
        assert_eq!(symmetric.verdict, Verdict::Warning);
        assert!(symmetric.advice.unwrap().contains("endpoint.external_addresses"));
        let unknown = check_nat(&bound, Some(&NetReport::default()));
        assert_eq!(unknown.verdict, Verdict::NotChecked);
    }

    #[tokio::test]
    async fn a_dht_that_is_there_is_told_from_one_that_is_not() {
        let dht = mainline::Testnet::builder(5).build().unwrap();
        let config = |bootstrap: Vec<String>| DiscoveryConfig {
            dht_bootstrap: bootstrap,
            mdns: false,
            ..DiscoveryConfig::default()
        };
        let endpoint = EndpointConfig {
            bind: "127.0.0.1:0".parse().unwrap(),
            iroh_relays: IrohRelays::Disabled,
            ..EndpointConfig::default()
        };
        let checks = network(&endpoint, &config(dht.bootstrap.clone())).await;
        let verdict = |checks: &[Check], what: &str| {
            checks.iter().find(|check| check.what == what).unwrap().verdict
        };
        assert_eq!(verdict(&checks, UDP), Verdict::Ok);
        assert_eq!(verdict(&checks, DHT), Verdict::Ok, "{checks:?}");
        for what in [MDNS, RELAY, NAT, MAPPING] {
            assert_eq!(verdict(&checks, what), Verdict::NotChecked, "{checks:?}");
        }
        // A socket that says nothing; and a port that is somebody else's.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let endpoint = EndpointConfig { bind: address, ..endpoint };
        let checks = network(&endpoint, &config(vec![address.to_string()])).await;
        assert_eq!(verdict(&checks, DHT), Verdict::Failed, "{checks:?}");
        assert_eq!(verdict(&checks, UDP), Verdict::Failed, "{checks:?}");
        assert!(checks[0].found.starts_with("endpoint.bind: "), "{checks:?}");
    }
}
