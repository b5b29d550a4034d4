//! `nostr-gateway plugin test`: what a plugin says to a file of events, beside what it is to say.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, mpsc},
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Output, Refused, in_folder};
use crate::{
    cli::{logging, print, table::table},
    clock,
    metrics::Metrics,
    pipeline::{EventWriter, Write},
    plugins::{
        Services,
        install::Package,
        trial::{Answer, Asked, Question, Told, Trial, parse},
    },
    protocol::VerifiedEvent,
    store::{Store, config::StorageConfig},
};

/// The names of the files in the plugin's folder that are looked for.
const EVENTS: &str = "events.jsonl";
const GOLDEN: &str = "golden.txt";

#[derive(Debug, Args)]
pub struct TestArgs {
    /// The plugin's folder, or a component (.wasm) with its manifest beside or in it
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
    /// What the plugin is asked, a JSON object in each line: an event, or an event with more about
    /// its arrival [default: events.jsonl in the plugin's folder]
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// What it is to say [default: golden.txt in the plugin's folder, if there is one]
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Write what it says into the golden file instead of comparing
    #[arg(long)]
    update: bool,
    /// Events that the store holds from the beginning, for a plugin that asks it
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(super) fn test(args: &TestArgs) -> ExitCode {
    match run(args) {
        Ok((text, true)) => print(&text),
        Ok((text, false)) => {
            print(&text);
            ExitCode::FAILURE
        }
        Err(Refused(why)) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// What is printed, and whether all is as it is to be.
fn run(args: &TestArgs) -> Result<(String, bool), Refused> {
    // The plugin's own lines are worth seeing here.
    logging::init_for_plugins()?;
    let package = Package::read(&args.path)?;
    let folder = match args.path.is_dir() {
        true => args.path.clone(),
        false => args.path.parent().map(Path::to_owned).unwrap_or_default(),
    };
    let world = package.manifest.world;
    let read = |file: &Path| {
        let text = fs::read_to_string(file).map_err(|error| in_file(file, &error))?;
        parse(&text, world).map_err(|error| Refused(format!("{}:{error}", file.display())))
    };
    let events = args.events.clone().unwrap_or_else(|| in_folder(&folder, EVENTS));
    let asked = read(&events)?;
    if asked.is_empty() {
        return Err(Refused(format!("{} is empty", events.display())));
    }
    clock::stand_at(asked[0].now);
    let held = args.store.as_deref().map(read).transpose()?.unwrap_or_default();
    let place = Place::open(&package)?;
    for asked in &held {
        place.hold(&asked.question)?;
    }
    let mut trial = package.trial(place.services.clone())?;
    let answers = ask(&mut trial, &asked, &place)?;
    let lines: Vec<String> = asked
        .iter()
        .zip(&answers)
        .map(|(asked, answer)| format!("{} {}", asked.name, answer.told))
        .collect();
    let golden = Golden::of(args, &folder)?;
    let differences = match &golden {
        Golden::None => Vec::new(),
        Golden::Written(file) => {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            fs::write(file, text).map_err(|error| in_file(file, &error))?;
            Vec::new()
        }
        Golden::Read(_, text) => differences(text, &lines, &asked, &events),
    };
    let failed = answers.iter().filter(|answer| matches!(answer.told, Told::Failed(_))).count();
    // A failure can be what is expected; without a golden file nobody expects it.
    let is_right = match golden {
        Golden::Read(..) => differences.is_empty(),
        Golden::Written(_) => true,
        Golden::None => failed == 0,
    };
    let times = Times::of(&answers);
    let text = if args.output.json {
        let json = json!({
            "plugin": package.manifest.id,
            "version": package.manifest.version,
            "events": asked.iter().zip(&answers).map(as_json).collect::<Vec<_>>(),
            "failed": failed,
            "p50_us": times.p50,
            "p99_us": times.p99,
            "golden": golden.name(),
            "differences": differences,
            "ok": is_right,
        });
        format!("{json}\n")
    } else {
        let mut text = table_of(&asked, &answers);
        text.push_str(&format!("\n{times}\n"));
        for difference in &differences {
            text.push_str(difference);
            text.push('\n');
        }
        text.push_str(&golden.said(differences.len(), failed));
        text
    };
    Ok((text, is_right))
}

fn in_file(file: &Path, error: &io::Error) -> Refused {
    Refused(format!("{}: {error}", file.display()))
}

/// Asks one question after the other, each at its time. What passes is in the store from then on.
fn ask(trial: &mut Trial, asked: &[Asked], place: &Place) -> Result<Vec<Answer>, Refused> {
    let mut answers = Vec::with_capacity(asked.len());
    for asked in asked {
        clock::stand_at(asked.now);
        let answer = trial.ask(&asked.question);
        if matches!(answer.told, Told::Accept | Told::Route(_) | Told::NotAsked) {
            place.hold(&asked.question)?;
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// What the plugin finds around it: an empty memory, and a store where it may ask one.
struct Place {
    services: Services,
    store: Option<Arc<Store>>,
    _dir: Option<TempDir>,
}

impl Place {
    fn open(package: &Package) -> Result<Self, Refused> {
        let mut services = Services::none()?;
        if !package.asks_store() {
            return Ok(Self { services, store: None, _dir: None });
        }
        let dir = TempDir::with_prefix("nostr-gateway-plugin-test-")?;
        let metrics = Arc::new(Metrics::default());
        let config = StorageConfig { search: false, ..StorageConfig::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let store = runtime.block_on(Store::open(dir.path(), &config, metrics))?;
        let store = Arc::new(store);
        services.lookup = store.clone();
        Ok(Self { services, store: Some(store), _dir: Some(dir) })
    }

    fn hold(&self, question: &Question) -> Result<(), Refused> {
        let (Some(store), Question::Event { event, arrival }) = (&self.store, question) else {
            return Ok(());
        };
        let (done, wait) = mpsc::sync_channel(1);
        store.write(Write {
            event: VerifiedEvent::clone(event),
            topics: arrival.topics.clone(),
            private: false,
            vanish: false,
            under_way: 1,
            origin: arrival.origin.clone(),
            done: Box::new(move |committed| drop(done.send(committed))),
        })?;
        let committed = wait.recv().map_err(|_| Refused("the store ended".to_owned()))?;
        committed.map(drop)?;
        Ok(())
    }
}

/// What the plugin is to say.
enum Golden {
    None,
    /// It is written now.
    Written(PathBuf),
    Read(PathBuf, String),
}

impl Golden {
    fn of(args: &TestArgs, folder: &Path) -> Result<Self, Refused> {
        let file = args.golden.clone().unwrap_or_else(|| in_folder(folder, GOLDEN));
        if args.update {
            return Ok(Self::Written(file));
        }
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Self::Read(file, text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && args.golden.is_none() => {
                Ok(Self::None)
            }
            Err(error) => Err(in_file(&file, &error)),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Written(_) => "written",
            Self::Read(..) => "compared",
        }
    }

    fn said(&self, differences: usize, failed: usize) -> String {
        match self {
            Self::None if failed > 0 => format!("{failed} calls failed\n"),
            Self::None => {
                "there is no golden file to compare with; --update writes one\n".to_owned()
            }
            Self::Written(file) => format!("wrote {}\n", file.display()),
            Self::Read(file, _) if differences == 0 => format!("as in {}\n", file.display()),
            Self::Read(file, _) => format!(
                "{differences} differences from {}; --update writes it anew\n",
                file.display()
            ),
        }
    }
}

/// One line for each difference, with the place in the file of events.
fn differences(golden: &str, lines: &[String], asked: &[Asked], events: &Path) -> Vec<String> {
    let golden: Vec<&str> = golden.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut found = Vec::new();
    for at in 0..lines.len().max(golden.len()) {
        let (is, want) = (lines.get(at).map(String::as_str), golden.get(at).copied());
        if is == want {
            continue;
        }
        let place = match asked.get(at) {
            Some(asked) => format!("{}:{}", events.display(), asked.line),
            None => format!("{}: it has no such line", events.display()),
        };
        let shown =
            |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("{line:?}"));
        found.push(format!("{place}: want {}, got {}", shown(want), shown(is)));
    }
    found
}

fn table_of(asked: &[Asked], answers: &[Answer]) -> String {
    let row = |(asked, answer): (&Asked, &Answer)| {
        let kind = match &asked.question {
            Question::Event { event, .. } => event.kind.to_string(),
            _ => "-".to_owned(),
        };
        let took = answer.took.map_or("-".to_owned(), |took| format!("{:.1}", micros(took)));
        let (verdict, detail) = (answer.told.name().to_owned(), answer.told.detail());
        vec![asked.line.to_string(), asked.name.clone(), kind, verdict, took, detail]
    };
    let rows: Vec<_> = asked.iter().zip(answers).map(row).collect();
    table(&["LINE", "EVENT", "KIND", "VERDICT", "µs", "REASON"], &rows)
}

fn as_json((asked, answer): (&Asked, &Answer)) -> Value {
    let mut value = json!({
        "line": asked.line,
        "name": asked.name,
        "verdict": answer.told.name(),
        "detail": answer.told.detail(),
        "us": answer.took.map(micros),
    });
    if let Question::Event { event, .. } = &asked.question {
        value["id"] = json!(event.id.to_string());
        value["kind"] = json!(event.kind);
    }
    value
}

fn micros(time: Duration) -> f64 {
    (time.as_nanos() as f64 / 100.0).round() / 10.0
}

/// How long calls took, in microseconds.
struct Times {
    calls: usize,
    p50: f64,
    p99: f64,
}

impl Times {
    fn of(answers: &[Answer]) -> Self {
        let mut times: Vec<Duration> = answers.iter().filter_map(|answer| answer.took).collect();
        times.sort();
        let at = |share: usize| {
            let last = times.len().saturating_sub(1);
            times.get((times.len() * share / 100).min(last)).copied().map_or(0.0, micros)
        };
        Self { calls: times.len(), p50: at(50), p99: at(99) }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { calls, p50, p99 } = self;
        write!(f, "{calls} calls: p50 {p50:.1} µs, p99 {p99:.1} µs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::manifest::World;

    #[test]
    fn a_difference_names_the_line_of_the_event() {
        let asked = parse("{}\n\n{\"kind\":2}", World::EventFilter).unwrap();
        let lines = ["a accept".to_owned(), "b reject blocked: no".to_owned()];
        let compare = |golden: &str| differences(golden, &lines, &asked, Path::new("e.jsonl"));
        assert!(compare("a accept\n\nb reject blocked: no\n").is_empty());
        assert_eq!(
            compare("a accept\nb accept\n"),
            ["e.jsonl:3: want \"b accept\", got \"b reject blocked: no\""]
        );
        assert_eq!(compare("a accept"), ["e.jsonl:3: want nothing, got \"b reject blocked: no\""]);
        let more = compare("a accept\nb reject blocked: no\nc accept");
        assert_eq!(more, ["e.jsonl: it has no such line: want \"c accept\", got nothing"]);
    }
}
