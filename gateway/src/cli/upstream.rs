//! `nostr-gateway upstream`: looking at the streams of the running gateway, pausing and resuming them.

mod follow;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    Output, Places, control, print,
    table::{duration, table},
    text::{joined, list, number, text},
};
use crate::{admin::api::Command, clock::unix_now};

#[derive(Debug, Args)]
pub struct UpstreamArgs {
    #[command(subcommand)]
    pub command: UpstreamCommand,
}

#[derive(Debug, Subcommand)]
pub enum UpstreamCommand {
    /// List all streams from and to other relays, and how they are doing
    List(Output),
    /// Show all that is known of a stream: its relays, and what they did not take
    Show(Stream),
    /// End a stream until it is resumed, also over restarts
    ///
    /// What is written meanwhile is sent when it is resumed, and what came to its relays is fetched then.
    Pause(Stream),
    /// Let a paused stream go on
    Resume(Stream),
}

#[derive(Debug, Clone, Args)]
pub struct Stream {
    /// The stream's name in the configuration
    pub name: String,
    #[command(flatten)]
    pub output: Output,
}

pub(super) fn run(args: UpstreamArgs, places: Places) -> ExitCode {
    let (command, output) = match args.command {
        UpstreamCommand::List(output) => (Command::UpstreamList, output),
        UpstreamCommand::Show(Stream { name, output }) => (Command::UpstreamShow { name }, output),
        UpstreamCommand::Pause(Stream { name, output }) => {
            (Command::UpstreamPause { name }, output)
        }
        UpstreamCommand::Resume(Stream { name, output }) => {
            (Command::UpstreamResume { name }, output)
        }
    };
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    match control::ask(&data_dir, &command, drop) {
        Ok(answer) if output.json => print(&format!("{answer}\n")),
        Ok(answer) => print(&said(&command, &answer)),
        Err(failure) => failure.report(),
    }
}

/// The answer for a person.
fn said(command: &Command, answer: &Value) -> String {
    let name = text(&answer["name"]);
    let was_paused = answer["was_paused"] == true;
    match command {
        Command::UpstreamList => match list(&answer["upstreams"]) {
            [] => "no streams; [[upstream]] in the configuration makes one\n".to_owned(),
            streams => table_of(streams),
        },
        Command::UpstreamShow { .. } => shown(answer),
        Command::UpstreamPause { .. } if was_paused => format!("{name} was paused already\n"),
        Command::UpstreamPause { .. } => format!("paused {name}\n"),
        Command::UpstreamResume { .. } if !was_paused => format!("{name} was not paused\n"),
        Command::UpstreamResume { .. } => format!("resumed {name}\n"),
        _ => format!("{answer}\n"),
    }
}

/// A table of streams as `status` describes them, one line for each.
pub(super) fn table_of(streams: &[Value]) -> String {
    let row = |stream: &Value| {
        let relays = list(&stream["relays"]);
        let connected = relays.iter().filter(|relay| !relay["connected_since"].is_null()).count();
        let figure = |name: &str| number(&stream[name]).to_string();
        vec![
            text(&stream["name"]),
            text(&stream["direction"]),
            format!("{connected} of {}", relays.len()),
            figure("received"),
            figure("new"),
            total(&stream["refused"]).to_string(),
            figure("sent"),
            figure("waiting"),
            state(stream),
        ]
    };
    let rows: Vec<_> = streams.iter().map(row).collect();
    let names = [
        "UPSTREAM",
        "DIRECTION",
        "CONNECTED",
        "RECEIVED",
        "NEW",
        "REFUSED",
        "SENT",
        "WAITING",
        "STATE",
    ];
    table(&names, &rows)
}

/// A state with its reason.
fn state(of: &Value) -> String {
    match of["reason"].as_str().or_else(|| of["trouble"].as_str()) {
        Some(reason) => format!("{}: {reason}", text(&of["state"])),
        None => text(&of["state"]),
    }
}

/// The sum of figures by reason.
fn total(reasons: &Value) -> u64 {
    reasons.as_object().into_iter().flatten().map(|(_, times)| number(times)).sum()
}

/// How long ago a time in Unix seconds was.
fn ago(at: &Value) -> String {
    match at.as_u64() {
        Some(at) => format!("{} ago", duration(unix_now().saturating_sub(at))),
        None => "-".to_owned(),
    }
}

fn reasons(of: &Value) -> String {
    let reasons = of.as_object().into_iter().flatten();
    let reasons = reasons.map(|(reason, times)| format!("{reason} {times}"));
    match reasons.collect::<Vec<_>>() {
        reasons if reasons.is_empty() => "-".to_owned(),
        reasons => reasons.join(", "),
    }
}

fn shown(stream: &Value) -> String {
    let config = &stream["config"];
    let figure = |name: &str| number(&stream[name]).to_string();
    let plugins = match config["plugins"].as_array() {
        Some(_) => joined(&config["plugins"]),
        None => "all in whose scope it falls".to_owned(),
    };
    let rows = [
        ("name", text(&stream["name"])),
        ("state", format!("{}, since {}", state(stream), ago(&stream["since"]))),
        ("direction", text(&stream["direction"])),
        ("filter", text(&config["filter"])),
        ("topics", joined(&config["topics"])),
        ("plugins", plugins),
        ("key", text(&stream["key"])),
        ("received", figure("received")),
        ("new", figure("new")),
        ("known", figure("known")),
        ("refused", reasons(&stream["refused"])),
        ("sent", figure("sent")),
        ("waiting", format!("{}, for {}", figure("waiting"), duration(number(&stream["lag_s"])))),
    ];
    let mut lines = String::new();
    for (name, value) in rows {
        lines.push_str(&format!("{name:<10} {value}\n"));
    }
    if !stream["follow"].is_null() {
        lines.push_str(&follow::followed(&stream["follow"]));
    }
    for relay in list(&stream["relays"]) {
        lines.push('\n');
        lines.push_str(&relay_lines(relay));
    }
    let dropped = list(&stream["dropped"]);
    if !dropped.is_empty() {
        let row = |event: &Value| {
            [ago(&event["at"]), text(&event["id"]), text(&event["url"]), text(&event["reason"])]
                .into()
        };
        let rows: Vec<Vec<String>> = dropped.iter().map(row).collect();
        lines.push_str(&format!("\n{}", table(&["NOT TAKEN", "EVENT", "RELAY", "REASON"], &rows)));
    }
    lines
}

fn relay_lines(relay: &Value) -> String {
    let figure = |of: &Value, name: &str| number(&of[name]).to_string();
    let state = match relay["error"].as_str() {
        Some(error) => format!("{}: {error}", text(&relay["state"])),
        None => text(&relay["state"]),
    };
    let mut rows = vec![
        ("state", state),
        ("connected", ago(&relay["connected_since"])),
        ("last event", ago(&relay["last_event_at"])),
        ("received", figure(relay, "received")),
        ("new", figure(relay, "new")),
        ("known", figure(relay, "known")),
        ("refused", reasons(&relay["refused"])),
    ];
    if let Some(notice) = relay["notice"].as_str() {
        rows.push(("notice", notice.to_owned()));
    }
    let past = &relay["catch_up"];
    if let Some(way) = past["way"].as_str() {
        let (done, parts) = (figure(past, "done"), figure(past, "parts"));
        let fetched = figure(past, "fetched");
        rows.push(("past", format!("{done} of {parts} complete by {way}, {fetched} events")));
    }
    if let Some(trouble) = past["trouble"].as_str() {
        rows.push(("trouble", trouble.to_owned()));
    }
    let worthless: Vec<String> = ["mismatched", "unasked", "malformed"]
        .into_iter()
        .filter(|what| number(&relay[*what]) > 0)
        .map(|what| format!("{what} {}", figure(relay, what)))
        .collect();
    if !worthless.is_empty() {
        rows.push(("worthless", worthless.join(", ")));
    }
    let up = &relay["up"];
    if !up.is_null() {
        let waiting = number(&up["waiting"]);
        rows.extend([
            ("up", self::state(up)),
            ("sent", format!("{}, known there {}", figure(up, "sent"), figure(up, "known"))),
            ("not taken", reasons(&up["refused"])),
            ("waiting", format!("{waiting}, for {}", duration(number(&up["lag_s"])))),
        ]);
    }
    let mut lines = format!("{}\n", text(&relay["url"]));
    for (name, value) in rows {
        lines.push_str(&format!("  {name:<10} {value}\n"));
    }
    lines
}
