//! Whether the TCP ports are free, or our own gateway's.

use std::net::{SocketAddr, TcpListener};

use super::Running;
use crate::{
    config::Loaded,
    gossip::check::{Check, Verdict},
};

pub(super) fn check(loaded: &Loaded, running: &Running) -> Vec<Check> {
    let config = &loaded.config;
    vec![
        port("relay port", "relay", "relay.listen", config.relay.listen, Verdict::Failed, running),
        // Without metrics it is still a relay.
        port("admin port", "admin", "admin.listen", config.admin.listen, Verdict::Warning, running),
    ]
}

fn port(
    what: &str,
    field: &str,
    setting: &str,
    address: SocketAddr,
    taken: Verdict,
    running: &Running,
) -> Check {
    if let Some(status) = running {
        return match status[field].as_str() {
            Some(url) => Check::new(what, Verdict::Ok, format!("the gateway listens on {url}")),
            None => Check::new(what, taken, "the gateway runs without").advise(format!(
                "its log tells why; choose another address in {setting} and restart it"
            )),
        };
    }
    match TcpListener::bind(address) {
        Ok(_) => Check::new(what, Verdict::Ok, format!("{address} is free")),
        Err(error) => Check::new(what, taken, format!("{address}: {error}"))
            .advise(format!("stop the other program, or choose another address in {setting}")),
    }
}
