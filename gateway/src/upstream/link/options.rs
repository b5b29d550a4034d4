//! How links are made: what all of them share.

use std::{sync::Arc, thread, time::Duration};

use nostr_sdk::Keys;
use tokio::sync::Semaphore;
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

/// The longest message taken in any case, in bytes: strfry writes reconciliations of a megabyte.
const LEAST_MESSAGE: usize = 2 << 20;
/// What a message has beside an event.
const WRAPPING: usize = 1_024;
/// Names that are looked up at once, over all links. Each takes a thread while it lasts.
const LOOK_UPS: usize = 8;

/// Shared by all links; cheap to clone. A change in a clone concerns only links that are opened with it.
#[derive(Clone)]
pub struct LinkOptions {
    /// With this key challenges are answered (NIP-42); `None` does not authenticate.
    pub auth: Option<Arc<Keys>>,
    /// Only addresses that are reachable from everywhere are connected to: for URLs that strangers wrote.
    pub only_global: bool,
    pub timeouts: Timeouts,
    pub(super) max_message: usize,
    pub(super) tls: TlsConnector,
    pub(super) look_ups: Arc<Semaphore>,
}

/// How long a relay may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name, TCP, TLS and the upgrade together.
    pub connect: Duration,
    /// For the NIP-11 document.
    pub document: Duration,
    /// For an answer to a message; for taking what is written.
    pub answer: Duration,
    /// Without a sign of life, before it is asked for one (ping); it may take `answer` for that.
    pub silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            document: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            silence: Duration::from_secs(30),
        }
    }
}

impl LinkOptions {
    /// `max_event_bytes` is the longest event that the gateway takes.
    pub fn new(max_event_bytes: usize) -> Self {
        // An event may be written with many more escapes than its canonical form has.
        let longest_event = max_event_bytes.saturating_mul(2).saturating_add(WRAPPING);
        let threads = thread::available_parallelism().map_or(LOOK_UPS, |n| n.get().max(LOOK_UPS));
        Self {
            auth: None,
            only_global: false,
            timeouts: Timeouts::default(),
            max_message: longest_event.max(LEAST_MESSAGE),
            tls: tls(),
            look_ups: Arc::new(Semaphore::new(threads)),
        }
    }
}

/// TLS with the roots that browsers trust. One configuration for all: it keeps the sessions to resume.
fn tls() -> TlsConnector {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of the default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}
