//! `nostr-gateway bench`: measures any relay by its URL.
//!
//! It knows nothing of the gateway but what a websocket shows. All connections share one thread, which
//! costs the relay beside it less than several that wake one another.

mod args;
pub(super) mod connection;
pub mod dataset;
mod error;
mod fanout;
mod frames;
mod fresh;
pub mod generator;
mod idle;
mod latency;
mod nip11;
mod publish;
mod query;
mod random;
mod report;
mod scan;
mod server;
mod shapes;
mod signing;
mod verify;

use std::{fs, io, path::PathBuf, process::ExitCode, time::Duration};

use crate::cli::progress::Progress;
pub use args::BenchArgs;
use args::Scenario;
use connection::Target;
use dataset::{Facts, Spec};
use error::BenchError;
use frames::{EventFrame, Frames};
use fresh::Fresh;
use publish::Source;
use report::{Load, Report};
use server::{CpuSeconds, Process, Used};
use signing::Place;

use crate::{clock::unix_now, tasks};

/// The exit code after Ctrl-C, as shells give it for SIGINT.
const INTERRUPTED: i32 = 130;

/// Older events are signed anew: relays may refuse what lies far back.
const MAX_AGE_S: u64 = 7 * 86_400;

/// Files that are open besides the idle connections.
const OTHER_FILES: u64 = 100;

/// Measures, and prints what it found.
pub fn run(args: BenchArgs, data_dir: Option<PathBuf>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let bench = Bench::new(args, data_dir);
    let place = bench.place.clone();
    let measured = runtime.block_on(async {
        tokio::select! {
            measured = bench.measure() => measured,
            // An error means that there is no signal to wait for.
            Ok(()) = tokio::signal::ctrl_c() => {
                place.forget_part();
                std::process::exit(INTERRUPTED);
            }
        }
    });
    match measured.and_then(|(report, json)| write(&report, json)) {
        Ok(table) => super::print(&table),
        Err(error) => failed(&error),
    }
}

fn failed(error: &BenchError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::FAILURE
}

/// Writes the JSON where it is wanted. Returns what goes to the standard output.
fn write(report: &Report, json: Option<PathBuf>) -> Result<String, BenchError> {
    let Some(path) = json else { return Ok(report.table()) };
    let mut text = serde_json::to_string_pretty(report).map_err(io::Error::from)?;
    text.push('\n');
    if path.as_os_str() == "-" {
        return Ok(text);
    }
    fs::write(&path, text).map_err(|source| BenchError::Output { path, source })?;
    Ok(report.table())
}

/// One run.
struct Bench {
    args: BenchArgs,
    data_dir: Option<PathBuf>,
    spec: Spec,
    place: Place,
}

/// The events that come next, up to a number.
struct Part<'a> {
    frames: &'a mut Frames,
    left: u64,
}

impl Source for Part<'_> {
    fn next(&mut self) -> io::Result<Option<EventFrame>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.frames.next()
    }
}

/// The processor time at the beginning of a phase, of the relay and of this program.
struct Clocks {
    relay: Option<(Process, CpuSeconds)>,
    own: Option<CpuSeconds>,
}

impl Clocks {
    fn start(process: Option<Process>) -> Result<Self, BenchError> {
        let relay = process.map(|process| process.cpu().map(|cpu| (process, cpu))).transpose()?;
        Ok(Self { relay, own: Process::own().cpu().ok() })
    }

    fn relay(&self) -> Result<Option<Used>, BenchError> {
        self.relay.map(|(process, before)| process.used_since(before)).transpose()
    }

    fn own(&self) -> Option<f64> {
        Process::own().used_since(self.own?).ok().map(|used| used.cpu_s)
    }
}

impl Bench {
    fn new(args: BenchArgs, data_dir: Option<PathBuf>) -> Self {
        let spec = Spec {
            version: Spec::VERSION,
            seed: args.seed,
            events: args.set_size(),
            authors: args.authors,
            ends_at: unix_now(),
        };
        let directory =
            args.cache.clone().unwrap_or_else(|| std::env::temp_dir().join("nostr-gateway-bench"));
        let place = Place::new(directory, &spec);
        Self { args, data_dir, spec, place }
    }

    async fn measure(self) -> Result<(Report, Option<PathBuf>), BenchError> {
        let mut report = Report { url: self.args.url.clone(), ..Report::default() };
        // What can be wrong is found out before the minutes of work.
        let process = self.args.pid.map(Process::watch).transpose()?;
        self.check_paths()?;
        let target = match self.args.needs_relay() {
            true => Some(self.find_relay(&mut report).await?),
            false => None,
        };
        let facts = self.events().await?;
        report.load = Load {
            seed: self.spec.seed,
            events: self.spec.events,
            prefill: self.args.prefill,
            authors: self.spec.authors,
            json_bytes: facts.bytes,
        };
        if self.args.runs(Scenario::Verify) || self.args.runs(Scenario::Publish) {
            let _progress = Progress::new("verifying", 0);
            let path = self.place.frames();
            let measured = tasks::blocking(move || verify::measure(&path)).await??;
            if let Some(share) = measured.share_of_core().filter(|share| *share < 0.9) {
                report.notes.push(format!(
                    "the machine is busy with something else: verifying had {:.0} % of a core, so \
                     the figures say little",
                    share * 100.0
                ));
            }
            report.verify = Some(measured);
        }
        if let Some(target) = target {
            let relay = Relay { args: &self.args, target, process, facts: &facts };
            self.publish(&relay, &mut report).await?;
            relay.queries(&mut report).await?;
            relay.fanout(&mut report).await?;
            relay.idle(&mut report).await?;
        }
        Ok((report, self.args.json))
    }

    fn check_paths(&self) -> Result<(), BenchError> {
        if let Some(path) = &self.data_dir {
            let source = fs::read_dir(path).err();
            source
                .map_or(Ok(()), |source| Err(BenchError::DataDir { path: path.clone(), source }))?;
        }
        if let Some(path) = self.args.json.as_ref().filter(|path| path.as_os_str() != "-") {
            // What an earlier run wrote stays until there is something new.
            let opened = fs::OpenOptions::new().append(true).create(true).open(path);
            opened.map_err(|source| BenchError::Output { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Checks that the relay is there and may be measured in this way.
    async fn find_relay(&self, report: &mut Report) -> Result<Target, BenchError> {
        let target = Target::resolve(&self.args.url, self.args.quick_ack).await?;
        if self.args.publishes() && !self.args.yes && !target.is_loopback() {
            return Err(BenchError::NotLoopback(self.args.url.clone()));
        }
        if self.args.runs(Scenario::Idle) {
            server::allow_open_files(u64::from(self.args.idle_connections) + OTHER_FILES)?;
        }
        target.open("start", connection::Use::Traffic, None).await?;
        report.relay = nip11::fetch(&target).await;
        Ok(target)
    }

    /// The set of events, signed now unless an earlier run has left it.
    async fn events(&self) -> Result<Facts, BenchError> {
        if let Some(facts) = signing::cached(&self.place, &self.spec, MAX_AGE_S) {
            return Ok(facts);
        }
        let what = format!("signing {} events", self.spec.events);
        let progress = Progress::new(&what, self.spec.events);
        let (place, spec) = (self.place.clone(), self.spec.clone());
        let written = tasks::blocking(move || signing::write(&place, spec, &progress)).await?;
        written.map_err(|source| BenchError::Cache { path: self.place.frames(), source })
    }

    fn data_bytes(&self) -> Option<u64> {
        self.data_dir.as_deref().map(server::directory_bytes)
    }

    /// Prefills and publishes, one behind the other in the same set.
    async fn publish(&self, relay: &Relay<'_>, report: &mut Report) -> Result<(), BenchError> {
        let args = &self.args;
        let path = self.place.frames();
        let mut frames =
            Frames::open(&path).map_err(|source| BenchError::Cache { path, source })?;
        if args.prefill > 0 {
            let progress = Progress::new(&format!("prefilling {}", args.prefill), args.prefill);
            let mut part = Part { frames: &mut frames, left: args.prefill };
            let (target, clients) = (&relay.target, args.clients);
            publish::publish(target, "prefill", clients, 1_024, &mut part, &progress).await?;
        }
        if !args.runs(Scenario::Publish) {
            return Ok(());
        }
        let progress = Progress::new(&format!("publishing {}", args.events), args.events);
        let mut part = Part { frames: &mut frames, left: args.events };
        let before = self.data_bytes();
        let clocks = Clocks::start(relay.process)?;
        let (clients, in_flight) = (args.clients, args.in_flight);
        let (tally, start, end) =
            publish::publish(&relay.target, "publish", clients, in_flight, &mut part, &progress)
                .await?;
        drop(progress);
        let mut found = tally.into_report(clients, in_flight, start, end);
        found.own_cpu_s = clocks.own();
        report.notes.extend(generator_note("publish", found.own_cpu_s, found.seconds));
        // Indexing and copying that is still to be done belongs to it.
        self.wait_for_rest(relay.process).await;
        found.server = clocks.relay()?;
        found.server_cpu_s_per_50k = found
            .server
            .map(|used| (used.cpu_s * 50_000.0 / found.sent as f64 * 100.0).round() / 100.0);
        found.data_bytes_before = before;
        found.data_bytes = self.data_bytes();
        found.verify_ratio = report
            .verify
            .map(|verify| (found.per_second / verify.per_second * 1_000.0).round() / 1_000.0);
        if found.duplicates > 0 {
            report.notes.push(format!(
                "the relay had {} of the events already, which says nothing about storing them: \
                 use a fresh one, or another --seed",
                found.duplicates
            ));
        }
        report.publish = Some(found);
        Ok(())
    }
}

impl Bench {
    /// Waits until the relay has nothing to do any more, at most ten seconds.
    async fn wait_for_rest(&self, process: Option<Process>) {
        const LOOK: Duration = Duration::from_millis(500);
        /// Of a core, meanwhile.
        const AT_REST: f64 = 0.04;
        for _ in 0..20 {
            let before = process.and_then(|process| process.cpu().ok().map(|cpu| (process, cpu)));
            tokio::time::sleep(LOOK).await;
            let used = before.and_then(|(process, cpu)| process.used_since(cpu).ok());
            if used.is_none_or(|used| used.cpu_s < AT_REST * LOOK.as_secs_f64()) {
                break;
            }
        }
    }
}

/// A warning when this program was busy all the time: then it was measured, and not the relay.
fn generator_note(phase: &str, own_cpu_s: Option<f64>, seconds: f64) -> Option<String> {
    let share = own_cpu_s? / seconds;
    (share > 0.9 && seconds > 0.5).then(|| {
        format!("{phase}: bench itself was busy all the time, the relay may be able to do more")
    })
}

/// What the scenarios that follow publishing share.
struct Relay<'a> {
    args: &'a BenchArgs,
    target: Target,
    process: Option<Process>,
    facts: &'a Facts,
}

impl Relay<'_> {
    async fn queries(&self, report: &mut Report) -> Result<(), BenchError> {
        if self.args.runs(Scenario::Query) {
            let groups = shapes::alone(shapes::mixed(self.facts));
            report.query = Some(self.query("query", &groups, &mut report.notes).await?);
        }
        if self.args.runs(Scenario::Clients) {
            let mut groups = shapes::alone(shapes::clients(self.facts));
            groups.push(("mixed queries", shapes::mixed(self.facts)));
            report.clients = Some(self.query("clients", &groups, &mut report.notes).await?);
        }
        if self.args.runs(Scenario::Search) {
            if report.relay.as_ref().is_some_and(|info| info.supports(50)) {
                let groups = shapes::alone(shapes::search(self.facts));
                report.search = Some(self.query("search", &groups, &mut report.notes).await?);
            } else {
                report.notes.push("no search: the relay does not list NIP-50".to_owned());
            }
        }
        for found in [&report.query, &report.clients].into_iter().flatten() {
            if found.events == 0 {
                report.notes.push(
                    "the queries found nothing: publish first, with the same --seed, --events, \
                     --prefill and --authors"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }

    async fn query(
        &self,
        phase: &'static str,
        groups: &[shapes::Group],
        notes: &mut Vec<String>,
    ) -> Result<query::QueryReport, BenchError> {
        let progress = Progress::new(&format!("asking: {phase}"), 0);
        let clocks = Clocks::start(self.process)?;
        let (clients, duration) = (self.args.clients, self.args.duration());
        let mut found =
            query::measure(&self.target, phase, clients, duration, groups, &progress).await?;
        found.server = clocks.relay()?;
        found.own_cpu_s = clocks.own();
        // The warm-up is in the processor time as well.
        notes.extend(generator_note(phase, found.own_cpu_s, found.seconds * 1.1));
        Ok(found)
    }

    async fn fanout(&self, report: &mut Report) -> Result<(), BenchError> {
        if !self.args.runs(Scenario::Fanout) {
            return Ok(());
        }
        let BenchArgs { subscribers, rate, burst, in_flight, .. } = *self.args;
        let count = self.args.paced_events();
        let (hashtag, events) = self.fresh("paced", count).await?;
        let progress = Progress::new("delivering live, paced", u64::from(count));
        let clocks = Clocks::start(self.process)?;
        let mut paced =
            fanout::paced(&self.target, subscribers, rate, &hashtag, events, &progress).await?;
        paced.server = clocks.relay()?;
        drop(progress);

        let (hashtag, events) = self.fresh("unpaced", burst).await?;
        let progress = Progress::new("delivering live, as fast as it goes", u64::from(burst));
        let clocks = Clocks::start(self.process)?;
        let mut unpaced =
            fanout::unpaced(&self.target, subscribers, in_flight, &hashtag, events, &progress)
                .await?;
        unpaced.server = clocks.relay()?;
        report.fanout = Some(fanout::FanoutReport { subscribers, paced, unpaced });
        Ok(())
    }

    async fn idle(&self, report: &mut Report) -> Result<(), BenchError> {
        if !self.args.runs(Scenario::Idle) {
            return Ok(());
        }
        let (_, before) = self.fresh("before", idle::PROBES).await?;
        let (_, with) = self.fresh("with", idle::PROBES).await?;
        let wanted = self.args.idle_connections;
        let progress = Progress::new("opening idle connections", u64::from(wanted));
        let found =
            idle::measure(&self.target, wanted, self.process, [before, with], &progress).await?;
        if let Some(refusal) = &found.refusal {
            report.notes.push(format!("not all idle connections: {refusal}"));
        }
        report.idle = Some(found);
        Ok(())
    }

    /// Events with a hashtag of their own.
    async fn fresh(&self, purpose: &str, count: u32) -> Result<(String, Fresh), BenchError> {
        let hashtag = fresh::hashtag(purpose);
        let (spec, text) = (self.facts.spec.clone(), hashtag.clone());
        let events = tasks::blocking(move || Fresh::new(&spec, &text, count, unix_now())).await?;
        Ok((hashtag, events))
    }
}
