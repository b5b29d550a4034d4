//! The thread of a program: takes one event after the other and asks. It has a small runtime of its
//! own: programs started by a thread end with it, so this one stays as long as they do.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Asked, Told,
    launch::Launch,
    living::{self, Living},
    room::WaitingRoom,
};
use crate::plugins::{
    bindings::nostr_gateway::plugin::log::Level, calls::Calls, capabilities::PluginLog,
    instance::Failure, worker,
};

/// How long a program that was just started must stay, to count as one that runs.
const TRIAL: Duration = Duration::from_millis(300);

/// How long an event may wait for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How long what waits goes on after the gateway was told to end.
const GRACE: Duration = Duration::from_secs(2);

/// How the end is announced: `closing` for soon, `ending` for now.
#[derive(Clone, Default)]
pub struct Ends {
    pub closing: CancellationToken,
    pub ending: CancellationToken,
}

impl Ends {
    async fn over(&self) {
        let soon = async {
            self.closing.cancelled().await;
            sleep(GRACE).await;
        };
        tokio::select! {
            () = self.ending.cancelled() => {}
            () = soon => {}
        }
    }
}

/// What the thread of a program has.
pub struct Runner {
    pub launch: Launch,
    pub time_ms: u64,
    pub max_answer: usize,
    pub log: Arc<PluginLog>,
    pub calls: Calls,
    /// Counts those who waited for too long.
    pub busy: Counter,
    pub room: Arc<WaitingRoom>,
    pub ends: Ends,
}

impl Runner {
    /// Serves until nobody can ask any more, or the gateway ends. `started` hears whether the program
    /// runs.
    pub fn run(
        self,
        queue: mpsc::Receiver<Asked>,
        started: &crossbeam_channel::Sender<Result<(), Failure>>,
    ) {
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.serve(queue, started)),
            Err(error) => {
                let _ = started.send(Err(Failure::Program(format!("no runtime: {error}"))));
            }
        }
    }

    async fn serve(
        self,
        mut queue: mpsc::Receiver<Asked>,
        started: &crossbeam_channel::Sender<Result<(), Failure>>,
    ) {
        let mut living = match self.start() {
            Ok(living) => Some(living),
            Err(failure) => return drop(started.send(Err(failure))),
        };
        if let Some(new) = &mut living
            && let Err(failure) = living::stays(new, TRIAL).await
        {
            self.end(living.take()).await;
            return drop(started.send(Err(failure)));
        }
        let _ = started.send(Ok(()));

        let mut over = pin!(self.ends.over());
        loop {
            let next = async {
                match &mut living {
                    Some(living) => living.attend(queue.recv()).await,
                    None => Ok(queue.recv().await),
                }
            };
            let next = tokio::select! {
                biased;
                () = &mut over => break,
                next = next => next,
            };
            let asked = match next {
                Ok(Some(asked)) => asked,
                Ok(None) => break,
                Err(failure) => {
                    // No event was lost by it; the next one starts another.
                    self.log.write(Level::Warn, &format!("the program is ended: {failure}"));
                    self.end(living.take()).await;
                    continue;
                }
            };
            let told = tokio::select! {
                biased;
                () = &mut over => {
                    asked.tell(Told::Stopping);
                    break;
                }
                told = self.answer(&mut living, &asked) => told,
            };
            asked.tell(told);
        }
        queue.close();
        while let Ok(asked) = queue.try_recv() {
            asked.tell(Told::Stopping);
        }
        if let Some(living) = living {
            living.retire().await;
        }
    }

    async fn answer(&self, living: &mut Option<Living>, asked: &Asked) -> Told {
        let (entry, began) = (&asked.entry, Instant::now());
        if asked.since.elapsed() > LONGEST_WAIT {
            self.busy.inc();
            return Told::Busy;
        }
        if !entry.rest.may_run(began) {
            self.calls.failed.inc();
            return Told::Failed;
        }
        self.room.asks(true);
        let answer = self.ask(living, asked).await;
        self.room.asks(false);
        let took = began.elapsed();
        entry.took(took);
        self.calls.seconds.observe(took.as_secs_f64());
        match answer {
            Ok(verdict) => {
                if entry.rest.succeeded() {
                    tracing::info!(plugin = %entry.id, "the plugin works again");
                }
                self.calls.count(&verdict);
                Told::Verdict(verdict)
            }
            Err(failure) => {
                self.calls.failed.inc();
                self.calls.traps.inc();
                worker::failed(entry, &self.log, &failure);
                self.end(living.take()).await;
                Told::Failed
            }
        }
    }

    async fn ask(
        &self,
        living: &mut Option<Living>,
        asked: &Asked,
    ) -> Result<super::Verdict, Failure> {
        let living = match living {
            Some(living) => living,
            None => living.insert(self.start()?),
        };
        living.ask(&asked.request, &asked.id, self.time_ms).await
    }

    fn start(&self) -> Result<Living, Failure> {
        Living::start(&self.launch, self.max_answer, Arc::clone(&self.log))
    }

    async fn end(&self, living: Option<Living>) {
        if let Some(living) = living {
            living.kill().await;
        }
    }
}
