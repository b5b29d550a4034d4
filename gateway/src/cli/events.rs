//! `nostr-gateway export`, `scan` and `delete`: stored events, out into a file, onto the screen, away.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    Output, Places, USAGE, age,
    control::Failure,
    print,
    progress::Progress,
    reach::{Missing, Reached, interrupted},
    topic,
};
use crate::{
    admin::api::{Command, NO_WORDS},
    app::Needs,
    clock::unix_now,
    protocol::{Filter, TopicName},
    tasks,
};

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Only the events that this filter of NIP-01 matches, like '{"kinds":[1],"authors":["…"]}'
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
    /// Only the events of this topic, in the order in which they became part of it
    #[arg(long, value_name = "NAME", value_parser = topic::name)]
    pub topic: Option<TopicName>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ScanArgs {
    /// A filter of NIP-01, like '{"kinds":[1],"limit":20}'. With "search" the best come first, at most
    /// 500
    #[arg(value_name = "FILTER")]
    pub filter: String,
    /// Only in this topic
    #[arg(long, value_name = "NAME", value_parser = topic::name)]
    pub topic: Option<TopicName>,
    /// Only say how many there are
    #[arg(long)]
    pub count: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// A filter of NIP-01, like '{"authors":["…"]}'; of one with "limit", so many of the newest
    #[arg(value_name = "FILTER", required_unless_present = "older_than")]
    pub filter: Option<String>,
    /// Only events that were made before so long, like 90d or 52w
    #[arg(long, value_name = "AGE", value_parser = age::seconds)]
    pub older_than: Option<u64>,
    /// Only in this topic; they are deleted everywhere
    #[arg(long, value_name = "NAME", value_parser = topic::name)]
    pub topic: Option<TopicName>,
    /// Delete without asking
    #[arg(long)]
    pub yes: bool,
    /// Only say how many there are
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
}

pub fn export(args: ExportArgs, places: &Places) -> ExitCode {
    let command = Command::Export { filter: args.filter, topic: args.topic };
    listed(command, "exporting", "exported", args.output, places)
}

pub fn scan(args: ScanArgs, places: &Places) -> ExitCode {
    let ScanArgs { filter, topic, count, output } = args;
    let command = Command::Scan { filter, topic, count };
    if !count {
        return listed(command, "reading", "found", output, places);
    }
    let reached = match Reached::open(places, Needs::Store, Missing::Refuse) {
        Ok(reached) => reached,
        Err(code) => return code,
    };
    let code = match reached.ask(command, drop) {
        Ok(answer) if output.json => print(&format!("{answer}\n")),
        Ok(answer) => print(&format!("{}\n", answer["count"])),
        Err(failure) => failure.report(),
    };
    reached.close();
    code
}

/// Prints the events of an answer, one in each line, and on the standard error how many there were.
fn listed(
    command: Command,
    what: &str,
    counted: &str,
    output: Output,
    places: &Places,
) -> ExitCode {
    let reached = match Reached::open(places, Needs::Store, Missing::Refuse) {
        Ok(reached) => reached,
        Err(code) => return code,
    };
    let shows = io::stderr().is_terminal() && !io::stdout().is_terminal() && !output.json;
    let progress = if shows { Progress::new(what, 0) } else { Progress::silent() };
    let mut out = io::BufWriter::new(io::stdout());
    let (mut written, mut count) = (Ok(()), 0);
    let write = |step: Value| {
        let events = step["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        for event in events.iter().filter_map(Value::as_str) {
            if written.is_ok() {
                written = writeln!(out, "{event}");
                count += 1;
            }
        }
        progress.add(events.len() as u64);
    };
    let answer = reached.ask(command, write);
    drop(progress);
    let written = written.and_then(|()| out.flush());
    let code = match (answer, written) {
        (Err(failure), _) => failure.report(),
        // A reader that has gone (`| head`) is no failure.
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        (Ok(_), Err(error)) => {
            eprintln!("cannot write to the standard output: {error}");
            ExitCode::FAILURE
        }
        (Ok(answer), Ok(())) => {
            match output.json {
                true => eprintln!("{answer}"),
                false => eprintln!("{counted} {count} events"),
            }
            ExitCode::SUCCESS
        }
    };
    reached.close();
    code
}

pub fn delete(args: DeleteArgs, places: &Places) -> ExitCode {
    let filter = match chosen(args.filter.as_deref(), args.older_than) {
        Ok(filter) => filter,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(USAGE);
        }
    };
    let reached = match Reached::open(places, Needs::Store, Missing::Refuse) {
        Ok(reached) => reached,
        Err(code) => return code,
    };
    let deleted = deleted(&reached, filter, &args);
    reached.close();
    deleted.unwrap_or_else(|failure| failure.report())
}

fn deleted(reached: &Reached, filter: String, args: &DeleteArgs) -> Result<ExitCode, Failure> {
    let topic = args.topic.clone();
    let count = Command::Scan { filter: filter.clone(), topic: topic.clone(), count: true };
    let matches = reached.ask(count, drop)?["count"].as_u64().unwrap_or_default();
    let said = |deleted: u64| match args.output.json {
        true => print(&format!("{}\n", json!({ "matches": matches, "deleted": deleted }))),
        false if args.dry_run => print(&format!("{matches} events match; nothing was deleted\n")),
        false => print(&format!("deleted {deleted} events\n")),
    };
    if args.dry_run || matches == 0 {
        return Ok(said(0));
    }
    if !args.yes && !agreed(reached, matches)? {
        return Ok(ExitCode::from(USAGE));
    }
    let shows = io::stderr().is_terminal() && !args.output.json;
    let progress = if shows { Progress::new("deleting", matches) } else { Progress::silent() };
    let mut before = 0;
    let step = |step: Value| {
        let now = step["deleted"].as_u64().unwrap_or_default();
        progress.add(now - before);
        before = now;
    };
    let answer = reached.ask(Command::Delete { filter, topic }, step);
    drop(progress);
    Ok(said(answer?["deleted"].as_u64().unwrap_or_default()))
}

/// The filter with its age, as JSON.
fn chosen(filter: Option<&str>, older_than: Option<u64>) -> Result<String, String> {
    let mut filter =
        Filter::parse(filter.unwrap_or("{}")).map_err(|error| format!("the filter: {error}"))?;
    if filter.words().is_some() {
        return Err(NO_WORDS.to_owned());
    }
    if let Some(age) = older_than {
        let before = unix_now().saturating_sub(age).saturating_sub(1);
        filter.until = Some(filter.until.map_or(before, |until| until.min(before)));
    }
    serde_json::to_string(&filter).map_err(|error| error.to_string())
}

/// Asks whoever sits there. Who does not is told what to say.
fn agreed(reached: &Reached, matches: u64) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        eprintln!("{matches} events match; --yes deletes them, --dry-run only counts");
        return Ok(false);
    }
    eprint!("Delete {matches} events for good? [y/N] ");
    let answer = tasks::blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    let agreed = reached.runtime.block_on(async {
        tokio::select! {
            answer = answer => Ok(matches!(answer, Ok(Ok(answer)) if ["y", "Y", "yes"].contains(&answer.trim()))),
            () = interrupted() => Err(Failure::Interrupted),
        }
    })?;
    if !agreed {
        eprintln!("nothing was deleted");
    }
    Ok(agreed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_bounds_the_filter_and_never_widens_it() {
        let until = |filter, age| {
            let chosen: Value = serde_json::from_str(&chosen(filter, age).unwrap()).unwrap();
            chosen["until"].as_u64()
        };
        assert_eq!(until(Some(r#"{"until":5}"#), None), Some(5));
        assert_eq!(until(Some(r#"{"until":5}"#), Some(60)), Some(5));
        let now = unix_now();
        let before = until(Some(r#"{"kinds":[1]}"#), Some(60)).unwrap();
        assert!((now - 62..=now - 60).contains(&before), "{before}");
        assert!(until(None, Some(0)).unwrap() <= now);
        assert!(chosen(Some("{"), None).is_err() && chosen(Some("[]"), Some(1)).is_err());
    }
}
