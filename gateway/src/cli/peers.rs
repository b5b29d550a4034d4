//! `nostr-gateway peers`: our own endpoint, and who is connected to it.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Output, Places, control, print,
    table::table,
    text::{joined, list, text},
};
use crate::admin::api::Command;

pub(super) fn run(output: Output, places: Places) -> ExitCode {
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    match control::ask(&data_dir, &Command::Peers, drop) {
        Ok(answer) if output.json => print(&format!("{answer}\n")),
        Ok(answer) => print(&said(&answer)),
        Err(failure) => failure.report(),
    }
}

fn said(answer: &Value) -> String {
    format!(
        "endpoint     {}\naddresses    {}\niroh relays  {}\n\n{}",
        text(&answer["endpoint"]),
        joined(&answer["addresses"]),
        joined(&answer["iroh_relays"]),
        table_of(&answer["peers"]),
    )
}

/// A table of neighbors as `peers` describes them.
pub(super) fn table_of(peers: &Value) -> String {
    let row = |peer: &Value| {
        let topics = peer["topics"].as_object().into_iter().flatten();
        let topics = topics.map(|(name, found_by)| format!("{name} ({})", text(found_by)));
        let rtt = match peer["rtt_ms"].as_f64() {
            Some(ms) => format!("{ms:.1} ms"),
            None => "-".to_owned(),
        };
        let topics = topics.collect::<Vec<_>>().join(", ");
        vec![text(&peer["id"]), text(&peer["path"]), text(&peer["address"]), rtt, topics]
    };
    match list(peers) {
        [] => "no neighbors\n".to_owned(),
        peers => {
            let rows: Vec<_> = peers.iter().map(row).collect();
            table(&["NEIGHBOR", "PATH", "ADDRESS", "ROUND TRIP", "TOPICS (FOUND BY)"], &rows)
        }
    }
}
