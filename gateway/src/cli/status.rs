//! `nostr-gateway status`: how the running gateway is doing.

use std::process::ExitCode;

use serde_json::Value;

use super::{
    Output, Places, control, plugin, print,
    table::{duration, size},
    text::{joined, list, number, text},
    topic, upstream,
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
        ("config", config(&status["config"])),
    ];
    let mut lines = String::new();
    for (name, value) in rows {
        lines.push_str(&format!("{name:<14} {value}\n"));
    }
    lines.push('\n');
    lines.push_str(&topic::topics(&status["topics"]));
    if let streams @ [_, ..] = list(&status["upstreams"]) {
        lines.push_str(&format!("\n{}", upstream::table_of(streams)));
    }
    lines.push_str(&plugins(list(&status["plugins"])));
    lines
}

/// The configuration file, and what of it does not count.
fn config(config: &Value) -> String {
    let file = text(&config["file"]);
    let errors = list(&config["errors"]);
    if let Some(first) = errors.first() {
        let more = match errors.len() {
            1 => String::new(),
            many => format!(" (and {} more)", many - 1),
        };
        return format!("{file} is not taken, what was read before counts: {}{more}", text(first));
    }
    match list(&config["needs_restart"]) {
        [] => file,
        _ => format!("{file}; counts after a restart: {}", joined(&config["needs_restart"])),
    }
}

fn plugins(plugins: &[Value]) -> String {
    match plugins {
        [] => String::new(),
        plugins => format!("\n{}", plugin::table_of(plugins)),
    }
}
