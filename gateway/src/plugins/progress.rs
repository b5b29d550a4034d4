//! How far the chain has come with an event, and putting it aside while a program is asked.

use std::{sync::Arc, time::Duration};

use super::{
    chain::Generation,
    entry::Entry,
    manifest::OnFailure,
    program::{self, Source, Told},
    verdict::Verdict,
};
use crate::{
    pipeline::{Answer, Context, Decision, Question},
    protocol::{EventId, Reason, TopicName, VerifiedEvent},
};

/// How far the chain has come with an event on its way in.
pub struct Progress {
    /// The plugins that judge it, if those of now may be others.
    pub former: Option<Arc<Generation>>,
    /// Which of them is next.
    pub next: usize,
    /// The topics that a plugin chose.
    pub routed: Option<Vec<TopicName>>,
    /// What is left of the time that all plugins together may take. Programs take none of it.
    pub left: Duration,
}

impl Progress {
    pub const fn begin(budget: Duration) -> Self {
        Self { former: None, next: 0, routed: None, left: budget }
    }

    /// Takes a plugin's verdict, or that there is none. Returns the decision when no other plugin is
    /// to be asked.
    pub fn take(
        &mut self,
        entry: &Entry,
        verdict: Option<Verdict>,
        context: &Context<'_>,
    ) -> Option<Decision> {
        match verdict {
            Some(Verdict::Accept) => None,
            Some(Verdict::Route(mut topics)) => {
                // What a swarm brought stays in the topic it came by: whoever guards that topic is
                // asked even after a route elsewhere.
                if let Some(own) = context.origin.topic()
                    && !topics.contains(own)
                {
                    topics.push(own.clone());
                }
                self.routed = Some(topics);
                None
            }
            Some(Verdict::Reject(reason)) => Some(Decision::Reject(reason)),
            Some(Verdict::ShadowReject) => Some(Decision::ShadowReject),
            None if entry.on_failure == OnFailure::Pass => None,
            None => Some(Decision::Reject(failed(entry))),
        }
    }
}

/// What the sender hears of a failure. The cause is the operator's business.
pub fn failed(entry: &Entry) -> Reason {
    Reason::error(format!("plugin {} failed", entry.id))
}

/// What becomes of an event that only certain plugins may judge, when one of them is not there.
pub fn absent(id: &str) -> Reason {
    Reason::error(format!("plugin {id} is not there to judge it"))
}

/// A question to a program about an event that is put aside.
pub struct ProgramQuestion {
    entry: Arc<Entry>,
    id: EventId,
    request: Vec<u8>,
    source: Source,
    progress: Progress,
}

impl ProgramQuestion {
    pub fn new(
        entry: Arc<Entry>,
        event: &VerifiedEvent,
        context: &Context<'_>,
        progress: Progress,
    ) -> Self {
        let request = program::request(event, context);
        Self { entry, id: event.id, request, source: context.origin.into(), progress }
    }
}

/// What came of it.
pub struct Answered {
    pub entry: Arc<Entry>,
    pub told: Told,
    pub progress: Progress,
}

impl Question for ProgramQuestion {
    fn put(self: Box<Self>, answered: Box<dyn FnOnce(Answer) + Send>) {
        let Self { entry, id, request, source, progress } = *self;
        let judged = Arc::clone(&entry);
        let tell =
            move |told| answered(Answer(Box::new(Answered { entry: judged, told, progress })));
        match entry.program() {
            Some(program) => program.ask(&entry, id, request, source, Box::new(tell)),
            None => tell(Told::Failed),
        }
    }
}
