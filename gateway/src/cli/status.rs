//! `nostr-gateway status`: how the running gateway is doing.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Output, Places, control, plugin, print,
    table::{duration, size, table},
    text::{joined, list, number, text},
    topic,
};
use crate::admin::api::Command;

pub(super) fn run(output: Output, places: Places) -> ExitCode {
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    match control::ask(&data_dir, &Command::Status, drop) {
        Ok(answer) if output.json => print(&format!("{answer}\n")),
        Ok(answer) => print(&said(&answer)),
        Err(failure) => failure.report(),
    }
}

fn said(status: &Value) -> String {
    let relay = match status["relay_url"].as_str() {
        Some(url) if !url.is_empty() => format!("{}, from elsewhere {url}", text(&status["relay"])),
        _ => text(&status["relay"]),
    };
    let store = &status["store"];
    let store = format!("{} events, {}", number(&store["events"]), size(number(&store["bytes"])));
    let health = match status["trouble"].as_str() {
        Some(trouble) => format!("in trouble: {trouble}"),
        None => "well".to_owned(),
    };
    let rows = [
        ("nostr-gateway", text(&status["version"])),
        ("running", duration(number(&status["uptime_s"]))),
        ("health", health),
        ("relay", relay),
        ("admin", text(&status["admin"])),
        ("data", text(&status["data_dir"])),
        ("store", store),
        ("endpoint", text(&status["endpoint"])),
        ("addresses", joined(&status["addresses"])),
        ("iroh relays", joined(&status["iroh_relays"])),
    ];
    let mut lines = String::new();
    for (name, value) in rows {
        lines.push_str(&format!("{name:<14} {value}\n"));
    }
    lines.push('\n');
    lines.push_str(&topic::topics(&status["topics"]));
    lines.push_str(&upstreams(list(&status["upstreams"])));
    lines.push_str(&plugins(list(&status["plugins"])));
    lines
}

fn upstreams(streams: &[Value]) -> String {
    let mut rows = Vec::new();
    for stream in streams {
        for relay in list(&stream["relays"]) {
            let state = match relay["error"].as_str() {
                Some(error) => format!("{}: {error}", text(&relay["state"])),
                None => text(&relay["state"]),
            };
            let received = number(&stream["received"]).to_string();
            rows.push(vec![text(&stream["name"]), text(&relay["url"]), received, state]);
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => format!("\n{}", table(&["UPSTREAM", "RELAY", "RECEIVED", "STATE"], &rows)),
    }
}

fn plugins(plugins: &[Value]) -> String {
    match plugins {
        [] => String::new(),
        plugins => format!("\n{}", plugin::table_of(plugins)),
    }
}
