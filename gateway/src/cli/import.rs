//! `nostr-gateway import`: events from a file.

mod lines;
mod mark;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesOrdered};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::{
    lines::{Part, read_part},
    mark::{Mark, Position},
};
use super::{
    Output, Places, USAGE,
    control::Failure,
    print,
    progress::Progress,
    reach::{Missing, Reached, interrupted},
    run::INTERRUPTED,
    topic,
};
use crate::{
    admin::api::{Command, Imported, Lines},
    app::Needs,
    protocol::TopicName,
    tasks,
};

/// Parts of the file that are under way at once: while one is answered, the others keep the cores busy.
const PARTS: usize = 4;
/// Refusals that are kept apart, as the gateway does.
const REASONS: usize = 100;

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
    /// Go on where the last import of this file into this data directory was broken off
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub output: Output,
}

/// What came of an import, or of a part of it.
#[derive(Debug, Default)]
struct Sum {
    /// Lines that were read.
    lines: u64,
    added: u64,
    known: u64,
    refused: u64,
    reasons: BTreeMap<String, u64>,
    first: Option<(u64, String)>,
    /// From the first line to the last answer.
    took: Duration,
}

/// How it ended before the end.
enum Broken {
    Interrupted,
    Failed(Failure),
    Reading(io::Error),
}

pub fn import(args: ImportArgs, places: &Places) -> ExitCode {
    let ImportArgs { file, topics, no_topics, resume, output } = args;
    let topics = (no_topics || !topics.is_empty()).then_some(topics);
    let (mut reader, bytes) = match open(&file) {
        Ok(opened) => opened,
        Err(error) => {
            eprintln!("{} cannot be read: {error}", file.display());
            return ExitCode::from(USAGE);
        }
    };
    if resume && file == Path::new("-") {
        eprintln!("--resume needs a file: of the standard input nobody knows what came before");
        return ExitCode::from(USAGE);
    }
    let reached = match Reached::open(places, Needs::Pipeline, Missing::Make) {
        Ok(reached) => reached,
        Err(code) => return code,
    };
    let mark = Mark::new(&reached.data_dir, &file);
    let mut begin = Position::default();
    if resume {
        begin = match mark.read().and_then(|position| reader.skip(&position).map(|()| position)) {
            Ok(position) => position,
            Err(why) => {
                eprintln!("{why}");
                reached.close();
                return ExitCode::FAILURE;
            }
        };
    }
    let progress = match output.json || !io::stderr().is_terminal() {
        true => Progress::silent(),
        false => Progress::bytes("importing", bytes),
    };
    progress.add(begin.offset);
    let (parts, read) = mpsc::channel(1);
    let reading = tasks::thread("import-reader", move || reader.read(begin, &parts));
    let importing = Importing { reached: &reached, topics, progress: &progress, mark: &mark };
    let (sum, broken) = match reading {
        Ok(_) => reached.runtime.block_on(importing.run(read, begin)),
        Err(error) => (Sum::default(), Some(Broken::Reading(error))),
    };
    drop(progress);
    let code = told(&sum, broken, &file, begin, &mark, output);
    reached.close();
    code
}

/// Says what came of it.
fn told(
    sum: &Sum,
    broken: Option<Broken>,
    file: &Path,
    begin: Position,
    mark: &Mark,
    output: Output,
) -> ExitCode {
    if let Some(Broken::Failed(failure)) = &broken
        && sum.added + sum.known + sum.refused == 0
    {
        return failure.report();
    }
    let printed = print(&match output.json {
        true => format!("{}\n", sum.json(begin, broken.is_none())),
        false => sum.text(file),
    });
    let Some(broken) = broken else {
        return if sum.refused == 0 { printed } else { ExitCode::FAILURE };
    };
    let code = match broken {
        Broken::Interrupted => {
            eprintln!("interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Broken::Failed(failure) => failure.report(),
        Broken::Reading(error) => {
            eprintln!("{} cannot be read on: {error}", file.display());
            ExitCode::FAILURE
        }
    };
    eprintln!("What is counted above is in. {}", mark.advice());
    code
}

struct Importing<'r> {
    reached: &'r Reached,
    topics: Option<Vec<TopicName>>,
    progress: &'r Progress,
    mark: &'r Mark,
}

/// A part that was answered, with what was counted while it was read.
type Answered = (Part, Result<Value, Failure>);

impl Importing<'_> {
    /// Hands over part after part, several at once. After Ctrl-C or a failure those under way are waited
    /// for and no more are begun.
    async fn run(
        &self,
        mut parts: mpsc::Receiver<io::Result<Part>>,
        begin: Position,
    ) -> (Sum, Option<Broken>) {
        let mut under_way: FuturesOrdered<LocalBoxFuture<'_, Answered>> = FuturesOrdered::new();
        let (mut sum, mut broken, mut ended) = (Sum::default(), None, false);
        let begun = Instant::now();
        let mut reached = begin;
        let stop = interrupted();
        tokio::pin!(stop);
        loop {
            let more = !ended && broken.is_none();
            tokio::select! {
                biased;
                () = &mut stop, if more => broken = Some(Broken::Interrupted),
                Some((part, answer)) = under_way.next(), if !under_way.is_empty() => {
                    match answer.and_then(|value| self.understood(value)) {
                        Ok(imported) => {
                            self.progress.add(part.end.offset - reached.offset);
                            reached = part.end;
                            sum.merge(part.sum);
                            sum.add(imported);
                            // From the first one that failed on, nothing is known to be complete.
                            if !matches!(broken, Some(Broken::Failed(_))) {
                                self.mark.reached(&part.end);
                            }
                        }
                        Err(failure) => {
                            let is_first = !matches!(broken, Some(Broken::Failed(_)));
                            if is_first {
                                broken = Some(Broken::Failed(failure));
                            }
                        }
                    }
                }
                part = parts.recv(), if more && under_way.len() < PARTS => match part {
                    Some(Ok(part)) => under_way.push_back(self.hand_over(part).boxed_local()),
                    Some(Err(error)) => broken = Some(Broken::Reading(error)),
                    None => ended = true,
                },
                else => break,
            }
        }
        sum.took = begun.elapsed();
        match &broken {
            None => self.mark.forget(),
            Some(_) => self.mark.save(),
        }
        (sum, broken)
    }

    async fn hand_over(&self, mut part: Part) -> Answered {
        let events = Lines(std::mem::take(&mut part.text));
        let command = Command::Import { events, first: part.first, topics: self.topics.clone() };
        let answer = self.reached.give(command, drop).await;
        (part, answer)
    }

    fn understood(&self, answer: Value) -> Result<Imported, Failure> {
        serde_json::from_value(answer).map_err(|error| Failure::Broken {
            path: self.reached.data_dir.clone(),
            why: format!("the answer is not understood: {error}"),
        })
    }
}

/// What the events are read from.
struct Source {
    reader: Box<dyn BufRead + Send>,
    /// Absent for the standard input.
    file: Option<PathBuf>,
}

/// Opens the file and tells its length, or 0 if that is not known.
fn open(file: &Path) -> io::Result<(Source, u64)> {
    if file == Path::new("-") {
        let reader = Box::new(BufReader::with_capacity(256 * 1024, io::stdin()));
        return Ok((Source { reader, file: None }, 0));
    }
    let opened = File::open(file)?;
    let metadata = opened.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let reader = Box::new(BufReader::with_capacity(256 * 1024, opened));
    Ok((Source { reader, file: Some(file.to_owned()) }, metadata.len()))
}

impl Source {
    /// Goes on from there.
    fn skip(&mut self, position: &Position) -> Result<(), String> {
        let Some(file) = &self.file else { return Ok(()) };
        let skipped = File::open(file).and_then(|mut opened| {
            opened.seek(SeekFrom::Start(position.offset))?;
            Ok(opened)
        });
        let opened = skipped.map_err(|error| format!("{}: {error}", file.display()))?;
        self.reader = Box::new(BufReader::with_capacity(256 * 1024, opened));
        Ok(())
    }

    /// Reads to the end, or until nobody takes it any more.
    fn read(mut self, begin: Position, parts: &mpsc::Sender<io::Result<Part>>) {
        let mut at = begin;
        loop {
            match read_part(&mut *self.reader, at) {
                Ok(None) => return,
                Ok(Some(part)) => {
                    at = part.end;
                    if parts.blocking_send(Ok(part)).is_err() {
                        return;
                    }
                }
                Err(error) => return drop(parts.blocking_send(Err(error))),
            }
        }
    }
}

impl Sum {
    fn add(&mut self, imported: Imported) {
        let Imported { added, known, refused, reasons, lines } = imported;
        let first = lines.into_iter().min();
        self.merge(Self { added, known, refused, reasons, first, ..Self::default() });
    }

    fn merge(&mut self, other: Self) {
        let Self { lines, added, known, refused, reasons, first, .. } = other;
        self.lines += lines;
        self.added += added;
        self.known += known;
        self.refused += refused;
        for (reason, count) in reasons {
            let reason = match self.reasons.len() < REASONS || self.reasons.contains_key(&reason) {
                true => reason,
                false => "other reasons".to_owned(),
            };
            *self.reasons.entry(reason).or_default() += count;
        }
        let firsts = [self.first.take(), first];
        self.first = firsts.into_iter().flatten().min();
    }

    fn refuse(&mut self, line: u64, reason: &str) {
        self.refused += 1;
        *self.reasons.entry(reason.to_owned()).or_default() += 1;
        self.first.get_or_insert((line, reason.to_owned()));
    }

    fn json(&self, begin: Position, complete: bool) -> Value {
        let first = self.first.as_ref();
        json!({
            "resumed_at_line": (begin.line > 0).then_some(begin.line + 1),
            "complete": complete,
            "lines": self.lines,
            "added": self.added,
            "known": self.known,
            "refused": self.refused,
            "reasons": self.reasons,
            "seconds": self.took.as_secs_f64(),
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
