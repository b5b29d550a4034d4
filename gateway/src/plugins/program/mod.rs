//! Plugins that are programs: any process that speaks strfry's protocol for write policies, JSON lines
//! on its standard input and output. They are not sandboxed.
//!
//! Each has a thread, and a queue before it. An event that a program is to judge is put aside, so that
//! nobody waits for the program but the events in its scope; the chain goes on with it afterwards.

mod files;
mod launch;
mod lines;
mod living;
mod room;
mod runner;
mod talk;

use std::{
    mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

pub use files::{Packed, hash, pack};
#[cfg(unix)]
pub use launch::become_program;
pub use launch::{COMMAND, Launch};
pub use room::Source;
pub use talk::request;

use super::{
    calls::Calls, capabilities::PluginLog, entry::Entry, manifest::Manifest, plugin::PluginError,
    verdict::Verdict,
};
use crate::{
    metrics::{Metrics, PluginLabels},
    protocol::EventId,
    tasks,
};
use room::{Place, Room, WaitingRoom};
use runner::{Ends, Runner};

/// A program that runs, or is started again when it is asked. It ends when this is dropped.
pub struct Program {
    pub manifest: Manifest,
    queue: mpsc::Sender<Asked>,
    room: Arc<WaitingRoom>,
    /// Counts those for whom there was no room.
    busy: Counter,
}

/// What came of asking a program.
pub enum Told {
    Verdict(Verdict),
    Failed,
    /// Too many events wait for it already.
    Busy,
    /// The gateway ends.
    Stopping,
}

type Tell = Box<dyn FnOnce(Told) + Send>;

/// An event that waits for a program.
struct Asked {
    /// What it waits for, which lives as long as somebody waits.
    entry: Arc<Entry>,
    request: Vec<u8>,
    id: EventId,
    since: Instant,
    tell: Tell,
    _place: Place,
}

impl Asked {
    fn tell(self, told: Told) {
        (self.tell)(told);
    }
}

impl Program {
    /// Asks about an event; never waits. `tell` hears what came of it, once, on another thread or on
    /// this one.
    pub fn ask(
        &self,
        entry: &Arc<Entry>,
        id: EventId,
        request: Vec<u8>,
        source: Source,
        tell: Tell,
    ) {
        let Some(place) = self.room.enter(source, request.len()) else {
            self.busy.inc();
            return tell(Told::Busy);
        };
        let (entry, since) = (Arc::clone(entry), Instant::now());
        let asked = Asked { entry, request, id, since, tell, _place: place };
        if let Err(refused) = self.queue.try_send(asked) {
            // There is a place in the queue for everybody in the room.
            refused.into_inner().tell(Told::Stopping);
        }
    }
}

/// All programs of a chain.
pub struct Programs {
    /// The gateway's own executable, if programs are to be bound to its life.
    launcher: Option<PathBuf>,
    ends: Ends,
    room: Room,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Programs {
    pub fn new(launcher: Option<PathBuf>) -> Self {
        Self { launcher, ends: Ends::default(), room: Room::for_all(), threads: Mutex::default() }
    }

    /// Starts the program in a plugin's folder, and looks for a moment whether it stays.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(
        &self,
        manifest: Manifest,
        folder: &Path,
        log: Arc<PluginLog>,
        metrics: &Metrics,
    ) -> Result<Arc<Program>, PluginError> {
        let launch = Launch::new(folder, &manifest.program, self.launcher.as_deref())
            .map_err(PluginError::Program)?;
        let room = WaitingRoom::new(self.room.clone());
        let labels = PluginLabels { plugin: manifest.id.clone(), verdict: "busy" };
        let busy = metrics.plugin_calls.get_or_create_owned(&labels);
        let runner = Runner {
            busy: busy.clone(),
            launch,
            time_ms: manifest.limits.time_ms,
            max_answer: usize::try_from(manifest.limits.output_bytes).unwrap_or(usize::MAX),
            log,
            calls: Calls::new(&manifest.id, metrics),
            room: Arc::clone(&room),
            ends: self.ends.clone(),
        };
        let (queue, asked) = mpsc::channel(room::EVENTS);
        let (started, start) = crossbeam_channel::bounded(1);
        let name = format!("program-{}", manifest.id);
        let thread = tasks::thread(name, move || runner.run(asked, &started))?;
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        drop(threads);
        let gone = || PluginError::Program("its thread ended".to_owned());
        start.recv().map_err(|_| gone())??;
        tracing::warn!(
            plugin = %manifest.id,
            "the plugin is a program and not sandboxed: it may do whatever the gateway may"
        );
        Ok(Arc::new(Program { manifest, queue, room, busy }))
    }

    /// Announces the end: what waits for a program has a moment left.
    pub fn close(&self) {
        self.ends.closing.cancel();
    }

    /// Ends all programs and waits for that, some seconds at most. Blocks.
    pub fn end(&self) {
        self.ends.ending.cancel();
        let threads = mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.end();
    }
}
