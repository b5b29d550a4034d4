//! `nostr-gateway topic`: joining, leaving and looking at topics of the running gateway.

use std::{
    io::{self, Read},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    Output, Places, USAGE, age, control, peers, print,
    table::table,
    text::{list, number, text},
};
use crate::{
    admin::api::{AdminKeyText, Command, NameOrInvite},
    protocol::{
        TopicName,
        private::{
            admin_key::AdminKey,
            invite::{Joinable, JoinableError, is_meant_as_invite},
        },
    },
};

/// Said beside an admin key, where it is not taken for a part of it.
const KEEP_SECRET: &str = "Keep this to yourself: whoever has it decides who is in the topic, for \
                           good. On another member, `nostr-gateway topic import-admin -` reads it.";

#[derive(Debug, Args)]
pub struct TopicArgs {
    #[command(subcommand)]
    pub command: TopicCommand,
}

#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Make a topic and join it
    ///
    /// A public topic is nothing but its name: whoever joins the same name is in it.
    Create {
        #[command(flatten)]
        topic: Topic,
        /// Only for those who get an invite
        #[arg(long)]
        private: bool,
    },
    /// Join a topic, now and after every restart
    Join {
        /// A public topic's name, or an invite to a private one; - reads it from the standard input,
        /// where nobody else on this machine sees it
        #[arg(value_name = "NAME-OR-INVITE")]
        topic: String,
        #[command(flatten)]
        output: Output,
    },
    /// Leave a topic; what it brought stays stored
    ///
    /// No visit brings it back (topics.join_on_visit), until it is joined by command or the gateway is
    /// restarted.
    Leave {
        #[command(flatten)]
        topic: Topic,
        /// Leave a private topic also if its admin key is here. Without that key nobody can invite
        /// anybody, leave anybody out or change the secret any more; export-admin prints it
        #[arg(long)]
        forget_admin_key: bool,
    },
    /// Show the topics that the gateway is in, and how each is doing
    List(Output),
    /// Show all that is known of one topic
    Show(Topic),
    /// Show the neighbors in one topic
    Peers(Topic),
    /// Make an invite to a private topic
    Invite {
        #[command(flatten)]
        topic: Topic,
        /// It admits one gateway and no more
        #[arg(long)]
        once: bool,
    },
    /// Give a private topic a new secret
    Rotate {
        #[command(flatten)]
        topic: Topic,
        /// Leave out this member. Can be given several times
        #[arg(long, value_name = "ENDPOINT")]
        exclude: Vec<String>,
        /// How long the old secret is still read, like 90s, 10m or 2h
        #[arg(long, value_name = "TIME", value_parser = age::seconds)]
        grace: Option<u64>,
    },
    /// Print the admin key of a private topic, to keep it or to take it to another gateway
    ///
    /// Whoever has it decides who is in the topic, and that cannot be taken back.
    ExportAdmin(Topic),
    /// Take in the admin key of a private topic that this gateway is in
    ImportAdmin {
        /// What export-admin printed; - reads it from the standard input, where nobody else on this
        /// machine sees it
        #[arg(value_name = "ADMIN-KEY")]
        key: String,
        #[command(flatten)]
        output: Output,
    },
    /// Reconcile a topic with all neighbors now
    Sync(Topic),
}

#[derive(Debug, Clone, Args)]
pub struct Topic {
    #[arg(value_parser = name)]
    pub name: TopicName,
    #[command(flatten)]
    pub output: Output,
}

pub(super) fn name(text: &str) -> Result<TopicName, String> {
    if is_meant_as_invite(text) {
        return Err("this is an invite or an admin key, and no topic's name".to_owned());
    }
    TopicName::new(text).map_err(|error| error.to_string())
}

pub(super) fn run(args: TopicArgs, places: Places) -> ExitCode {
    let (command, output) = match args.command {
        TopicCommand::Create { topic: Topic { name, output }, private } => {
            (Command::TopicCreate { name, private }, output)
        }
        TopicCommand::Join { topic, output } => match name_or_invite(topic) {
            Ok(topic) => (Command::TopicJoin { topic: NameOrInvite(topic) }, output),
            Err(why) => {
                eprintln!("{why}");
                return ExitCode::from(USAGE);
            }
        },
        TopicCommand::Leave { topic: Topic { name, output }, forget_admin_key } => {
            (Command::TopicLeave { name, forget_admin_key }, output)
        }
        TopicCommand::List(output) => (Command::TopicList, output),
        TopicCommand::Show(Topic { name, output }) => (Command::TopicShow { name }, output),
        TopicCommand::Peers(Topic { name, output }) => (Command::TopicPeers { name }, output),
        TopicCommand::Invite { topic: Topic { name, output }, once } => {
            (Command::TopicInvite { name, once }, output)
        }
        TopicCommand::Rotate { topic: Topic { name, output }, exclude, grace } => {
            (Command::TopicRotate { name, exclude, grace_s: grace }, output)
        }
        TopicCommand::ExportAdmin(Topic { name, output }) => {
            (Command::TopicExportAdmin { name }, output)
        }
        TopicCommand::ImportAdmin { key, output } => match admin_key(key) {
            Ok(key) => (Command::TopicImportAdmin { key: AdminKeyText(key) }, output),
            Err(why) => {
                eprintln!("{why}");
                return ExitCode::from(USAGE);
            }
        },
        TopicCommand::Sync(Topic { name, output }) => (Command::TopicSync { name }, output),
    };
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    let progress = |step: Value| match output.json {
        true => drop(print(&format!("{}\n", serde_json::json!({ "progress": step })))),
        false => eprintln!("{}", described(&step)),
    };
    match control::ask(&data_dir, &command, progress) {
        Ok(answer) => {
            if matches!(command, Command::TopicExportAdmin { .. }) {
                eprintln!("{KEEP_SECRET}");
            }
            let said = if output.json { format!("{answer}\n") } else { said(&command, &answer) };
            let printed = print(&said);
            let is_sync = matches!(command, Command::TopicSync { .. });
            match is_sync && broken_off(&answer["result"]).is_some() {
                true => ExitCode::FAILURE,
                false => printed,
            }
        }
        Err(failure) => failure.report(),
    }
}

/// The argument, or for `-` the standard input.
fn given_or_read(given: String) -> Result<String, String> {
    if given != "-" {
        return Ok(given);
    }
    let mut text = String::new();
    let read = io::stdin().lock().take(64 * 1024).read_to_string(&mut text);
    read.map_err(|error| format!("cannot read the standard input: {error}"))?;
    Ok(text.trim().to_owned())
}

/// Refuses what is none, before anybody is asked.
fn admin_key(given: String) -> Result<String, String> {
    let text = given_or_read(given)?;
    AdminKey::parse(&text).map(|_| text).map_err(|error| error.to_string())
}

/// Refuses what is neither.
fn name_or_invite(given: String) -> Result<String, String> {
    let text = given_or_read(given)?;
    match Joinable::parse(&text) {
        Ok(_) => Ok(text),
        Err(JoinableError::Name(error)) => {
            Err(format!("{error}; if this is an invite, it is mistyped"))
        }
        Err(JoinableError::Invite(error)) => Err(error.to_string()),
    }
}

/// A step of a command that takes a while.
fn described(step: &Value) -> String {
    let fields = step.as_object().into_iter().flatten();
    let fields = fields.map(|(name, value)| format!("{}: {}", name.replace('_', " "), text(value)));
    fields.collect::<Vec<_>>().join(", ")
}

/// The answer for a person.
fn said(command: &Command, answer: &Value) -> String {
    let name = text(&answer["name"]);
    match command {
        Command::TopicList => topics(&answer["topics"]),
        Command::TopicShow { .. } => topic(answer),
        Command::TopicPeers { .. } => peers::table_of(&answer["peers"]),
        Command::TopicJoin { .. } | Command::TopicCreate { .. } => {
            let mut lines = match answer["already"].as_bool() {
                Some(true) => format!("the gateway is in {name} already, and stays in it\n"),
                _ => format!("joined {name}\n"),
            };
            for field in ["url", "invite"] {
                if let Some(text) = answer[field].as_str() {
                    lines.push_str(&format!("{text}\n"));
                }
            }
            lines
        }
        Command::TopicLeave { .. } => format!("left {name}\n"),
        Command::TopicInvite { .. } => format!("{}\n", text(&answer["invite"])),
        Command::TopicRotate { .. } => format!("{name} has a new secret\n"),
        Command::TopicExportAdmin { .. } => format!("{}\n", text(&answer["admin_key"])),
        Command::TopicImportAdmin { .. } => match answer["already"].as_bool() {
            Some(true) => format!("the admin key of {name} is here already\n"),
            _ => format!("this gateway is an admin of {name} now\n"),
        },
        Command::TopicSync { .. } => reconciled(&name, &answer["result"]),
        _ => format!("{answer}\n"),
    }
}

/// What came of reconciling.
fn reconciled(name: &str, result: &Value) -> String {
    match (broken_off(result), result["neighbor"].is_null()) {
        (Some(why), _) => format!("{name} is not reconciled: {why}\n"),
        (None, true) => format!("nobody else is in {name} to reconcile with\n"),
        (None, false) => format!("{name} is reconciled\n"),
    }
}

/// Why a reconciliation did not do what it was asked for.
fn broken_off(result: &Value) -> Option<String> {
    if result["finished"] != true {
        return Some("it was broken off".to_owned());
    }
    let failed = result["failed"].as_u64().unwrap_or_default();
    (failed > 0).then(|| format!("it failed with {failed} neighbors; the log tells why"))
}

/// A table of topics as `status` describes them.
pub(super) fn topics(topics: &Value) -> String {
    let row = |topic: &Value| {
        let joined_by = match topic["how"].as_str() {
            Some("config") => "topics.join".to_owned(),
            _ => text(&topic["how"]),
        };
        vec![
            text(&topic["name"]),
            state(topic),
            list(&topic["neighbors"]).len().to_string(),
            joined_by,
        ]
    };
    match list(topics) {
        [] => "the gateway is in no topic; `nostr-gateway topic join NAME` joins one\n".to_owned(),
        topics => {
            let rows: Vec<_> = topics.iter().map(row).collect();
            table(&["TOPIC", "STATE", "NEIGHBORS", "JOINED BY"], &rows)
        }
    }
}

/// `joined 3`, `alone`, `failed: gossip did not answer`.
fn state(topic: &Value) -> String {
    let state = text(&topic["state"]);
    match (state.as_str(), topic["reason"].as_str()) {
        ("failed", Some(reason)) => format!("failed: {reason}"),
        ("joined" | "syncing", _) => format!("{state} {}", list(&topic["neighbors"]).len()),
        _ => state,
    }
}

fn topic(answer: &Value) -> String {
    let topic = &answer["topic"];
    let first = match topic["first_neighbor_ms"].as_u64() {
        Some(ms) => format!("after {ms} ms"),
        None => "none so far".to_owned(),
    };
    let rows = [
        ("topic", text(&topic["name"])),
        ("url", text(&answer["url"])),
        ("state", state(topic)),
        ("joined by", text(&topic["how"])),
        ("private", if topic["private"] == true { "yes" } else { "no" }.to_owned()),
        ("first neighbor", first),
    ];
    let mut lines = String::new();
    for (name, value) in rows {
        lines.push_str(&format!("{name:<15} {value}\n"));
    }
    lines.push_str(&private(&answer["private"]));
    let steps = topic["steps"].as_object().into_iter().flatten();
    let steps: Vec<Vec<String>> = steps
        .map(|(step, result)| {
            let outcome = match result["ok"].as_bool() {
                Some(true) => text(&result["result"]),
                _ => format!("failed: {}", text(&result["result"])),
            };
            let tried = match result["failures"].as_u64() {
                None | Some(0) => number(&result["attempts"]).to_string(),
                Some(failed) => format!("{} ({failed} failed)", number(&result["attempts"])),
            };
            let took = format!("{} ms", number(&result["took_ms"]));
            let found = number(&result["neighbors"]).to_string();
            vec![step.replace('_', " "), tried, found, took, outcome]
        })
        .collect();
    if !steps.is_empty() {
        lines.push('\n');
        lines.push_str(&table(&["DISCOVERY", "TRIED", "FOUND", "TOOK", "RESULT"], &steps));
    }
    lines.push('\n');
    lines + &peers::table_of(&answer["peers"])
}

/// Who is in a private topic.
fn private(private: &Value) -> String {
    if private.is_null() {
        return String::new();
    }
    let epoch = match private["epoch"].as_u64() {
        Some(epoch) => epoch.to_string(),
        None => "none: no member has let this gateway in yet".to_owned(),
    };
    let members: Vec<_> = list(&private["members"]).iter().collect();
    let rows = [
        ("epoch", epoch),
        ("admin", if private["is_admin"] == true { "this gateway" } else { "another" }.to_owned()),
        ("invites", format!("{} outstanding", number(&private["invites"]))),
        ("members", members.len().to_string()),
    ];
    let mut lines = String::new();
    for (name, value) in rows {
        lines.push_str(&format!("{name:<15} {value}\n"));
    }
    for member in members {
        lines.push_str(&format!("{:<15} {}\n", "", text(&member["id"])));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_neither_name_nor_invite_is_refused_here() {
        assert!(name_or_invite("cats".to_owned()).is_ok());
        // An invite with a mistake anywhere, and what is too long for a name.
        for wrong in ["ngw1whatever".to_owned(), format!("mgw1{}", "q".repeat(200))] {
            let error = name_or_invite(wrong).unwrap_err();
            assert!(error.contains("mistyped"), "{error}");
        }
        let error = name_or_invite("x y ".repeat(50)).unwrap_err();
        assert!(error.contains("128 bytes"), "{error}");
        assert!(name("ngw1whatever").is_err());
        for wrong in ["den", "ngwadmin1qqqq"] {
            let error = admin_key(wrong.to_owned()).unwrap_err();
            assert!(error.contains("mistyped") && !error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn states_are_told_in_a_word_or_two() {
        let told = |topic: Value| state(&topic);
        assert_eq!(told(json!({"state": "joined", "neighbors": [{}, {}]})), "joined 2");
        assert_eq!(told(json!({"state": "alone", "neighbors": []})), "alone");
        assert_eq!(told(json!({"state": "failed", "reason": "it broke"})), "failed: it broke");
    }
}
