//! Whether this machine's clock is right, by the `Date` of a server that the gateway uses anyway.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::{
    cli::bench::connection::Target,
    clock::unix_now,
    config::Loaded,
    gossip::check::{self, Check, Verdict},
};

const WHAT: &str = "clock";

/// How long a server may take, and how many are asked.
const PATIENCE: Duration = Duration::from_secs(5);
const SERVERS: usize = 3;

/// More than this many seconds are worth a word. A `Date` is in whole seconds.
const TOLERATED: u64 = 5;
/// Discovery records live in the slots of one minute: with a clock further off nobody is found.
const TOO_MUCH: u64 = 60;

pub(super) async fn check(loaded: &Loaded) -> Check {
    let mut servers = check::iroh_relays(&loaded.config.endpoint);
    servers.extend(Some(loaded.config.endpoint.pkarr_relay.clone()).filter(|url| !url.is_empty()));
    if servers.is_empty() {
        let found = "no server to compare with (endpoint.iroh_relays, endpoint.pkarr_relay)";
        return Check::new(WHAT, Verdict::NotChecked, found);
    }
    for server in servers.iter().take(SERVERS) {
        if let Ok(Some(theirs)) = timeout(PATIENCE, date_of(server)).await {
            return judge(unix_now(), theirs, server);
        }
    }
    Check::new(WHAT, Verdict::NotChecked, "no iroh relay or pkarr relay answers")
}

fn judge(ours: u64, theirs: u64, server: &str) -> Check {
    let off = ours.abs_diff(theirs);
    let direction = if ours > theirs { "ahead of" } else { "behind" };
    let found = match off {
        0..=TOLERATED => format!("as the one of {server}"),
        _ => format!("{off} s {direction} the one of {server}"),
    };
    let advice = "set the clock (NTP): events would be refused, and others not found";
    match off {
        0..=TOLERATED => Check::new(WHAT, Verdict::Ok, found),
        _ if off < TOO_MUCH => Check::new(WHAT, Verdict::Warning, found).advise(advice),
        _ => Check::new(WHAT, Verdict::Failed, found).advise(advice),
    }
}

/// The time of a server in Unix seconds, from the head of its answer, whatever it answers.
async fn date_of(url: &str) -> Option<u64> {
    let url = match url.split_once("://")? {
        ("https", rest) => format!("wss://{rest}"),
        (_, rest) => format!("ws://{rest}"),
    };
    let target = Target::resolve(&url, false).await.ok()?;
    let stream = target.connect(None).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::head("/")
        .header(header::HOST, &target.authority)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = async { sender.send_request(request).await.ok() };
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }?;
    read(answer.headers().get(header::DATE)?.to_str().ok()?)
}

/// A `Date` header (RFC 9110 §5.6.7) in Unix seconds.
fn read(date: &str) -> Option<u64> {
    let time: SystemTime = httpdate::parse_http_date(date).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_what_it_breaks() {
        let verdict = |ours, theirs| judge(ours, theirs, "x").verdict;
        assert_eq!(verdict(100, 104), Verdict::Ok);
        assert_eq!(verdict(130, 100), Verdict::Warning);
        assert_eq!(verdict(100, 160), Verdict::Failed);
        assert!(judge(100, 200, "x").found.contains("100 s behind"));
        assert!(judge(200, 100, "x").found.contains("100 s ahead of"));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(read("yesterday"), None);
    }
}
