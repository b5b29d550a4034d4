//! `nostr-gateway sync URL`: this gateway and a relay, brought together once.

use std::{
    cell::RefCell,
    io::{self, IsTerminal},
    process::ExitCode,
    str::FromStr,
};

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    Output, Places, USAGE, age, print,
    progress::Progress,
    reach::{Missing, Reached},
    text::number,
    topic,
};
use crate::{
    admin::api::Command,
    app::Needs,
    clock::unix_now,
    protocol::{Filter, TopicName},
};

/// Which way events go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the relay to here
    #[default]
    Down,
    /// From here to the relay
    Up,
    Both,
}

#[derive(Debug, Args)]
pub struct SyncArgs {
    /// The relay, like wss://relay.example.org
    #[arg(value_name = "URL")]
    pub url: String,
    /// Which way events go
    #[arg(long, value_enum, default_value_t)]
    pub direction: Direction,
    /// Only the events that this filter of NIP-01 matches, like '{"authors":["…"]}'
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
    /// Put what comes into this topic, in place of those that the configuration names for it; and let only
    /// events of this topic go
    #[arg(long, value_name = "NAME", value_parser = topic::name)]
    pub topic: Option<TopicName>,
    /// Only events made since: an age like 30d, a day like 2026-11-30 (UTC), or Unix seconds
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<u64>,
    /// Only say how many events are missing on either side (needs a relay with NIP-77)
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
}

pub fn sync(args: SyncArgs, places: &Places) -> ExitCode {
    let SyncArgs { url, direction, filter, topic, since, dry_run, output } = args;
    let filter = match chosen(filter.as_deref(), since) {
        Ok(filter) => filter,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(USAGE);
        }
    };
    let reached = match Reached::open(places, Needs::Pipeline, Missing::Make) {
        Ok(reached) => reached,
        Err(code) => return code,
    };
    let command = Command::Sync {
        url,
        down: direction != Direction::Up,
        up: direction != Direction::Down,
        filter: Some(filter),
        topic,
        dry_run,
    };
    let shows = io::stderr().is_terminal() && !output.json;
    let bar = Bar::default();
    let last = RefCell::new(Value::Null);
    let answer = reached.ask(command, |step| {
        if shows && !dry_run {
            bar.set(&step);
        }
        *last.borrow_mut() = step;
    });
    drop(bar);
    let print_figures = |figures: &Value| match output.json {
        true => print(&format!("{figures}\n")),
        false => print(&said(figures, dry_run, direction)),
    };
    let code = match answer {
        Ok(figures) => print_figures(&figures),
        Err(failure) => {
            let last = last.into_inner();
            let crossed =
                ["received", "sent", "not_taken"].iter().any(|name| number(&last[name]) > 0);
            if crossed {
                print_figures(&last);
            }
            failure.report()
        }
    };
    reached.close();
    code
}

/// The filter with its time, as JSON.
fn chosen(filter: Option<&str>, since: Option<u64>) -> Result<String, String> {
    let mut filter =
        Filter::parse(filter.unwrap_or("{}")).map_err(|error| format!("the filter: {error}"))?;
    if let Some(time) = since {
        filter.since = Some(filter.since.map_or(time, |since| since.max(time)));
    }
    serde_json::to_string(&filter).map_err(|error| error.to_string())
}

/// Unix seconds.
fn moment(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    if let Ok(age) = age::seconds(text) {
        return Ok(unix_now().saturating_sub(age));
    }
    day(text)
        .ok_or_else(|| "write an age like 30d, a day like 2026-11-30, or Unix seconds".to_owned())
}

/// The beginning of a day of UTC.
fn day(text: &str) -> Option<u64> {
    let midnight = format!("{text}T00:00:00Z");
    let is_day = text.len() == 10 && text.as_bytes().get(4) == Some(&b'-');
    let parsed = is_day.then(|| toml_edit::Datetime::from_str(&midnight).ok()).flatten()?;
    let date = parsed.date?;
    // Days since 1970 by the calendar that the years before and after have in common: years begin in March,
    // so that the day that is sometimes missing comes last.
    let (year, month) = (u64::from(date.year), u64::from(date.month));
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let of_year = (153 * month + 2) / 5 + u64::from(date.day) - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year;
    days.checked_sub(719_468).map(|days| days * 86_400)
}

fn said(figures: &Value, dry_run: bool, direction: Direction) -> String {
    let count = |name: &str| number(&figures[name]);
    let mut text = String::new();
    if direction != Direction::Up {
        if dry_run {
            text.push_str(&format!(
                "{} events of the relay are missing here\n",
                count("missing_here")
            ));
        } else {
            text.push_str(&format!(
                "{} received: {} new, {} known, {} refused\n",
                count("received"),
                count("added"),
                count("known"),
                count("refused")
            ));
            text.push_str(&reasons(&figures["reasons"]));
        }
    }
    if direction != Direction::Down {
        if dry_run {
            text.push_str(&format!(
                "{} events of here are missing there\n",
                count("missing_there")
            ));
        } else {
            text.push_str(&format!(
                "{} sent, {} not taken by the relay, {} stay here\n",
                count("sent"),
                count("not_taken"),
                count("stayed")
            ));
            text.push_str(&reasons(&figures["reasons_there"]));
        }
    }
    text
}

fn reasons(reasons: &Value) -> String {
    let mut list: Vec<_> = reasons.as_object().into_iter().flatten().collect();
    list.sort_by_key(|(_, count)| std::cmp::Reverse(number(count)));
    let lines =
        list.iter().take(10).map(|(reason, count)| format!("{:>9} × {reason}\n", number(count)));
    lines.collect()
}

/// Shows how much of what is missing has crossed.
#[derive(Default)]
struct Bar(RefCell<Option<(Progress, u64, u64)>>);

impl Bar {
    fn set(&self, figures: &Value) {
        let count = |name: &str| number(&figures[name]);
        let missing = count("missing_here") + count("missing_there");
        let done = count("received") + count("sent") + count("not_taken") + count("stayed");
        let mut bar = self.0.borrow_mut();
        // By paging, how much there is shows at the end.
        let known = if figures["by"] == "negentropy" { missing } else { 0 };
        let (progress, _, before) = match bar.take().filter(|(_, of, _)| *of == known) {
            Some(shown) => bar.insert(shown),
            None => bar.insert((Progress::new("transferring", known), known, 0)),
        };
        progress.add(done.saturating_sub(*before));
        *before = done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ages_days_or_seconds() {
        assert_eq!(moment("1790000000"), Ok(1_790_000_000));
        for (day, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2000-03-01", 951_868_800),
            ("2026-11-30", 1_795_996_800),
        ] {
            assert_eq!(moment(day), Ok(seconds), "{day}");
        }
        let age = unix_now() - moment("2h").unwrap();
        assert!((7_200..7_203).contains(&age));
        for wrong in
            ["", "yesterday", "2026-02-30", "2026-1-1", "1969-12-31", "2026-11-30T00:00:00Z"]
        {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }
}
