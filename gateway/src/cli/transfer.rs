//! `nostr-gateway import` and `export`: events from a file, and into one.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde_json::{Value, json};

use super::{Output, Places, USAGE, control, print, progress::Progress, topic};
use crate::{
    admin::api::{Command, Imported, Lines},
    protocol::TopicName,
};

/// Bytes of events that are handed over at once; one event may be longer.
const BATCH: usize = 1 << 20;
/// The longest line, in bytes. Whether an event is too long is for the gateway to say.
const LONGEST: u64 = 2 << 20;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file of events as JSON, one in each line; - reads the standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Put them into this topic in place of those that the configuration names for them ([[route]],
    /// topics.default). Can be given several times
    #[arg(long = "topic", value_name = "NAME", value_parser = topic::name)]
    pub topics: Vec<TopicName>,
    /// Only store them: they enter no topic, and go to no other gateway
    #[arg(long, conflicts_with = "topics")]
    pub no_topics: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Only the events that this filter of NIP-01 matches, like '{"kinds":[1],"authors":["…"]}'
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
}

/// What came of a whole import.
#[derive(Default)]
struct Sum {
    /// Lines that were read.
    lines: u64,
    added: u64,
    known: u64,
    refused: u64,
    reasons: BTreeMap<String, u64>,
    first: Option<(u64, String)>,
}

pub fn import(args: ImportArgs, places: Places) -> ExitCode {
    let ImportArgs { file, topics, no_topics, output } = args;
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    let topics = (no_topics || !topics.is_empty()).then_some(topics);
    let (mut reader, bytes) = match open(&file) {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("{} cannot be read: {error}", file.display());
            return ExitCode::from(USAGE);
        }
    };
    let progress = match output.json || !io::stderr().is_terminal() {
        true => Progress::silent(),
        false => Progress::bytes("importing", bytes),
    };
    let mut sum = Sum::default();
    let ended = loop {
        let first = sum.lines + 1;
        let batch = match read_batch(&mut reader, &mut sum) {
            Ok(Some(batch)) => batch,
            Ok(None) => break Ok(()),
            Err(error) => break Err(format!("{} cannot be read on: {error}", file.display())),
        };
        let bytes = batch.len() as u64;
        let command = Command::Import { events: Lines(batch), first, topics: topics.clone() };
        let answer = match control::ask(&data_dir, &command, drop) {
            Ok(answer) => answer,
            Err(failure) if first == 1 => return failure.report(),
            Err(failure) => break Err(failure.to_string()),
        };
        match serde_json::from_value(answer) {
            Ok(imported) => sum.add(imported),
            Err(error) => break Err(format!("the answer is not understood: {error}")),
        }
        progress.add(bytes);
    };
    drop(progress);
    let said = match output.json {
        true => format!("{}\n", sum.json()),
        false => sum.text(&file),
    };
    let printed = print(&said);
    match ended {
        Ok(()) if sum.refused == 0 => printed,
        Ok(()) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why}\nWhat is counted above is in; import the file again for the rest.");
            ExitCode::FAILURE
        }
    }
}

pub fn export(args: ExportArgs, places: Places) -> ExitCode {
    let data_dir = match control::data_dir(places) {
        Ok(data_dir) => data_dir,
        Err(code) => return code,
    };
    let shows = io::stderr().is_terminal() && !io::stdout().is_terminal();
    let progress = if shows { Progress::new("exporting", 0) } else { Progress::silent() };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    let write = |step: Value| {
        let events = step["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        for event in events.iter().filter_map(Value::as_str) {
            if written.is_ok() {
                written = writeln!(out, "{event}");
            }
        }
        progress.add(events.len() as u64);
    };
    let exported = control::ask(&data_dir, &Command::Export { filter: args.filter }, write);
    drop(progress);
    let written = written.and_then(|()| out.flush());
    match (exported, written) {
        (Err(failure), _) => failure.report(),
        // A reader that has gone (`| head`) is no failure.
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        (Ok(_), Err(error)) => {
            eprintln!("cannot write to the standard output: {error}");
            ExitCode::FAILURE
        }
        (Ok(_), Ok(())) => ExitCode::SUCCESS,
    }
}

/// The file, and its length if that is known.
fn open(file: &Path) -> io::Result<(Box<dyn BufRead>, u64)> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin().lock()), 0));
    }
    let opened = File::open(file)?;
    let metadata = opened.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((Box::new(BufReader::with_capacity(256 * 1024, opened)), metadata.len()))
}

/// The next lines; nothing at the end. A line that is far too long, or not UTF-8, is counted as refused, and
/// an empty one stands in its place, so that lines keep their numbers.
fn read_batch(reader: &mut dyn BufRead, sum: &mut Sum) -> io::Result<Option<String>> {
    let mut batch = String::new();
    let mut line = Vec::new();
    while batch.len() < BATCH {
        line.clear();
        if reader.take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        sum.lines += 1;
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < LONGEST;
        if !is_whole {
            skip_line(reader)?;
            sum.refuse(sum.lines, "invalid: the line is too long");
        } else if let Ok(text) = std::str::from_utf8(&line) {
            batch.push_str(text.trim_end_matches(['\n', '\r']));
        } else {
            sum.refuse(sum.lines, "invalid: not UTF-8");
        }
        batch.push('\n');
    }
    Ok((!batch.is_empty()).then_some(batch))
}

fn skip_line(reader: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let bytes = reader.fill_buf()?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(bytes.len(), |end| end + 1);
        reader.consume(used);
        if end.is_some() || used == 0 {
            return Ok(());
        }
    }
}

impl Sum {
    fn add(&mut self, imported: Imported) {
        let Imported { added, known, refused, reasons, lines } = imported;
        self.added += added;
        self.known += known;
        self.refused += refused;
        for (reason, count) in reasons {
            *self.reasons.entry(reason).or_default() += count;
        }
        if let Some(line) = lines.into_iter().min() {
            self.first.get_or_insert(line);
        }
    }

    fn refuse(&mut self, line: u64, reason: &str) {
        self.refused += 1;
        *self.reasons.entry(reason.to_owned()).or_default() += 1;
        self.first.get_or_insert((line, reason.to_owned()));
    }

    fn json(&self) -> Value {
        let first = self.first.as_ref();
        json!({
            "lines": self.lines,
            "added": self.added,
            "known": self.known,
            "refused": self.refused,
            "reasons": self.reasons,
            "first_refused": first.map(|(line, reason)| json!({ "line": line, "reason": reason })),
        })
    }

    fn text(&self, file: &Path) -> String {
        let Self { added, known, refused, .. } = self;
        let mut text = format!("{added} new, {known} known, {refused} refused\n");
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (reason, count) in reasons.iter().take(10) {
            text.push_str(&format!("{count:>9} × {reason}\n"));
        }
        if let Some((line, reason)) = &self.first {
            text.push_str(&format!("the first at {}:{line}: {reason}\n", file.display()));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_keep_their_numbers() {
        let mut text = b"one\r\n\n".to_vec();
        text.extend(vec![b'x'; LONGEST as usize + 100]);
        text.extend(b"\n\xff\xfe\nlast");
        let (mut sum, mut reader) = (Sum::default(), text.as_slice());
        assert_eq!(read_batch(&mut reader, &mut sum).unwrap().unwrap(), "one\n\n\n\nlast\n");
        assert_eq!(read_batch(&mut reader, &mut sum).unwrap(), None);
        assert_eq!((sum.lines, sum.refused), (5, 2));
        assert_eq!(sum.first, Some((3, "invalid: the line is too long".to_owned())));
    }

    #[test]
    fn much_is_handed_over_in_parts() {
        let text = "y".repeat(1_000) + "\n";
        let text = text.repeat(3_000);
        let (mut sum, mut reader) = (Sum::default(), text.as_bytes());
        let mut parts = Vec::new();
        while let Some(batch) = read_batch(&mut reader, &mut sum).unwrap() {
            assert!(batch.len() < BATCH + 1_001);
            parts.push(batch);
        }
        assert!(parts.len() > 2 && parts.concat() == text);
        assert_eq!((sum.lines, sum.refused), (3_000, 0));
    }
}
