//! The traits by which the pipeline and others ask what is wanted here: in practice plugins.

use std::{any::Any, sync::mpsc};

use super::{Decision, Origin};
use crate::protocol::{Reason, TopicName, VerifiedEvent};

/// Which way an event is about to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction<'a> {
    In,
    /// Out to the topics of the [`Context`].
    ToTopics,
    /// Out to another relay, by the stream of this name.
    ToUpstream(&'a str),
}

/// What the policy learns beside the event.
#[derive(Debug)]
pub struct Context<'a> {
    pub direction: Direction<'a>,
    pub origin: &'a Origin,
    /// The topics that routing chose. On the way out to topics: those it is about to enter.
    pub topics: &'a [TopicName],
    /// Seconds since the Unix epoch.
    pub received_at: u64,
}

/// The policy: in practice the plugin chain.
pub trait Policy: Send + Sync + 'static {
    /// A worker for one thread. It is made on that thread and stays there.
    fn worker(&self) -> Box<dyn PolicyWorker>;

    /// Whether anybody judges events that go this way; else there is no need to ask.
    fn judges(&self, direction: Direction<'_>) -> bool {
        let _ = direction;
        false
    }

    /// The first of these plugins that is not there to judge events, or is switched off.
    fn lacks(&self, plugins: &[String]) -> Option<String> {
        plugins.first().cloned()
    }
}

/// What a policy worker comes to.
pub enum Judged {
    Decided(Decision),
    /// Somebody outside of this process is asked first. Other events pass meanwhile.
    Asks(Box<dyn Question>),
}

/// A question to somebody outside of this process.
pub trait Question: Send {
    /// Puts it, and never waits. `answered` is called once, on whatever thread, perhaps before this
    /// returns; it is dropped uncalled when nobody is left who could answer.
    fn put(self: Box<Self>, answered: Box<dyn FnOnce(Answer) + Send>);
}

/// What came of a [`Question`]. Only the policy that asked it can read it.
pub struct Answer(pub Box<dyn Any + Send>);

/// Evaluates events on one thread, synchronously.
pub trait PolicyWorker {
    /// Judges an event on its way in, and waits for whoever has to be asked.
    fn evaluate(&mut self, event: &VerifiedEvent, context: &Context<'_>) -> Decision;

    /// Judges an event on its way in without waiting for anybody outside of this process.
    fn judge(&mut self, event: &VerifiedEvent, context: &Context<'_>) -> Judged {
        Judged::Decided(self.evaluate(event, context))
    }

    /// Goes on with an event whose question was answered; any worker of the policy may.
    fn resume(&mut self, event: &VerifiedEvent, context: &Context<'_>, answer: Answer) -> Judged {
        let _ = (event, context, answer);
        Judged::Decided(Decision::Reject(Reason::error("nobody asked")))
    }

    /// Called now and then between two events when the policy may have changed: nothing of the
    /// former one is to be kept for the next event.
    fn refresh(&mut self) {}

    /// Whether anybody judges events that go this way; else there is no need to ask.
    fn judges(&self, direction: Direction<'_>) -> bool;

    /// Judges an event on its way out: which of the context's topics it may go to. Towards another
    /// relay they are no matter, and come back as they are.
    ///
    /// # Errors
    /// When it stays: towards topics, when it may go to none of them.
    fn may_leave(
        &mut self,
        event: &VerifiedEvent,
        context: &Context<'_>,
    ) -> Result<Vec<TopicName>, Stays>;
}

/// Waits until an event is judged: for workers whose [`PolicyWorker::judge`] asks somebody.
pub fn wait_for_decision(
    worker: &mut dyn PolicyWorker,
    event: &VerifiedEvent,
    context: &Context<'_>,
) -> Decision {
    let mut judged = worker.judge(event, context);
    loop {
        let question = match judged {
            Judged::Decided(decision) => return decision,
            Judged::Asks(question) => question,
        };
        let (answered, answer) = mpsc::sync_channel(1);
        question.put(Box::new(move |answer| drop(answered.send(answer))));
        judged = match answer.recv() {
            Ok(answer) => worker.resume(event, context, answer),
            Err(_) => Judged::Decided(Decision::Reject(Reason::error("nobody answers"))),
        };
    }
}

/// An event does not go out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stays {
    Because(Reason),
    /// And its sender is not to notice.
    Silently,
}

/// Decides which topics may be joined because a client visits them: in practice plugins.
pub trait VisitPolicy: Send + Sync + 'static {
    /// May take as long as a plugin may: not on an async worker.
    fn may_visit(&self, topic: &TopicName) -> bool;
}

/// A private topic whose admin's key is here, for a rotation policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationQuestion {
    pub name: TopicName,
    pub epoch: u64,
    /// When the epoch began; Unix seconds.
    pub since: u64,
    /// Unix seconds.
    pub now: u64,
    pub members: Vec<RotationMember>,
}

/// A member as a rotation policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationMember {
    /// Endpoint id, hexadecimal.
    pub id: String,
    pub is_self: bool,
    /// On the roster since; Unix seconds.
    pub since: Option<u64>,
    /// When it was last spoken with; Unix seconds.
    pub last_seen: Option<u64>,
}

/// What a rotation policy wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotationAnswer {
    Keep,
    Rotate {
        /// Seconds for which the old secret is still read.
        grace: u32,
        /// Endpoint ids of members to leave out, hexadecimal. Not checked.
        exclude: Vec<String>,
    },
}

/// Decides when private topics get new secrets: in practice plugins.
pub trait RotationPolicy: Send + Sync + 'static {
    /// Whether there is nobody to ask.
    fn is_empty(&self) -> bool;

    /// May take as long as a plugin may: not on an async worker.
    fn decide(&self, question: &RotationQuestion) -> RotationAnswer;
}
