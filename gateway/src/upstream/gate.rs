//! Asks the policy about events that are about to go to other relays, on a thread of its own: a plugin
//! may take its time, and the pipeline's threads have events that come in.

use std::{
    io, panic,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    clock::unix_now,
    pipeline::{Context, Direction, Origin, Policy, PolicyWorker, Stays},
    protocol::{Event, Reason, TopicName, VerifiedEvent},
    tasks,
};

/// Questions that are waiting or asked, over all streams.
const MAX_ASKED: usize = 64;
/// How often a thread that is not asked looks whether the policy has changed.
const IDLE: Duration = Duration::from_secs(5);

/// The way to the policy, for all streams. The thread begins with the first question and ends with this.
pub struct Gate {
    policy: Arc<dyn Policy>,
    questions: OnceLock<Sender<Question>>,
    permits: Semaphore,
}

struct Question {
    event: Arc<Event>,
    stream: Arc<str>,
    topics: Vec<TopicName>,
    /// As the log names it.
    origin: Arc<str>,
    reply: oneshot::Sender<Result<(), Stays>>,
}

impl Gate {
    pub fn new(policy: Arc<dyn Policy>) -> Self {
        Self { policy, questions: OnceLock::new(), permits: Semaphore::new(MAX_ASKED) }
    }

    /// The first of these plugins that is not there or switched off.
    pub fn lacks(&self, plugins: &[String]) -> Option<String> {
        self.policy.lacks(plugins)
    }

    /// Whether the event may go to other relays by this stream. Waits while others are asked.
    ///
    /// # Errors
    /// When it stays, and why.
    pub async fn ask(
        &self,
        event: &Arc<Event>,
        stream: &Arc<str>,
        topics: Vec<TopicName>,
        origin: &Arc<str>,
    ) -> Result<(), Stays> {
        if !self.policy.judges(Direction::ToUpstream(stream)) {
            return Ok(());
        }
        let nobody = || Stays::Because(Reason::error("nobody can be asked about it"));
        let Ok(_permit) = self.permits.acquire().await else { return Err(nobody()) };
        let (reply, answer) = oneshot::channel();
        let (event, stream, origin) = (event.clone(), stream.clone(), origin.clone());
        let question = Question { event, stream, topics, origin, reply };
        let questions = match self.questions() {
            Ok(questions) => questions,
            Err(error) => {
                tracing::error!("no thread to ask plugins on: {error}; nothing goes to relays");
                return Err(nobody());
            }
        };
        // There is room for as many as there are permits.
        if questions.send(question).is_err() {
            return Err(nobody());
        }
        answer.await.unwrap_or_else(|_| Err(nobody()))
    }

    fn questions(&self) -> io::Result<&Sender<Question>> {
        if let Some(questions) = self.questions.get() {
            return Ok(questions);
        }
        let (sender, receiver) = crossbeam_channel::bounded(MAX_ASKED);
        let policy = self.policy.clone();
        tasks::thread("upstream-policy", move || answer(&receiver, &*policy))?;
        // Another stream may have been first; the thread of the second sender then ends at once.
        Ok(self.questions.get_or_init(|| sender))
    }
}

/// Until nobody asks any more.
fn answer(questions: &Receiver<Question>, policy: &dyn Policy) {
    let mut worker = policy.worker();
    loop {
        let question = match questions.recv_timeout(IDLE) {
            Ok(question) => question,
            Err(RecvTimeoutError::Timeout) => {
                worker.refresh();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        // The event that makes a plugin panic loses its answer; the thread goes on.
        let judge = panic::AssertUnwindSafe(|| judge(&mut *worker, &question));
        match panic::catch_unwind(judge) {
            // A stream that has ended does not need it.
            Ok(verdict) => drop(question.reply.send(verdict)),
            Err(_) => {
                tracing::error!("judging an event panicked; this is a defect, please report it");
                worker = policy.worker();
            }
        }
    }
}

fn judge(worker: &mut dyn PolicyWorker, question: &Question) -> Result<(), Stays> {
    // What is in the log was verified.
    let broken = |_| Stays::Because(Reason::error("the store holds a broken event"));
    let event = VerifiedEvent::from_store(question.event.json()).map_err(broken)?;
    let (origin, topics) = (Origin::of_log_name(&question.origin), &question.topics[..]);
    let direction = Direction::ToUpstream(&question.stream);
    let context = Context { direction, origin: &origin, topics, received_at: unix_now() };
    worker.may_leave(&event, &context).map(drop)
}
