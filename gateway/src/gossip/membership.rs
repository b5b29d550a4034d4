//! Joining and leaving topics while the gateway runs.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use iroh::address_lookup::memory::MemoryLookup;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    failed::FailedTopics,
    left::LeftTopics,
    links::Links,
    net::Net,
    private::{CircleError, Circles},
    publisher::Lanes,
    swarms::{Swarm, Swarms},
    sync::{CannotSync, SyncProgress},
};
use crate::{
    clock::unix_now,
    pipeline::{
        HowJoined, JoinedTopics, KeptTopic, PrivateTopics, SecretError, SecretStore, StoreError,
        TopicDoor, TopicStore, VisitPolicy, joined::MAX_TOPICS,
    },
    protocol::{
        TopicName,
        private::{epochs::Refusal, invite::is_meant_as_invite},
    },
    tasks,
};

/// How long the tasks of a topic that is left may take to say goodbye.
const LEAVE: Duration = Duration::from_secs(2);

/// The longest and the shortest pause between two looks for topics that nobody visits any more.
const LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(30)];

/// Why a topic is not joined, left, or otherwise done with as asked.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("this gateway is not in the topic {:?}", .0.as_str())]
    NotJoined(TopicName),
    #[error(
        "the topic {:?} is in topics.join of the configuration: take it out there, and restart the \
         gateway",
        .0.as_str()
    )]
    Configured(TopicName),
    #[error("{:?} is the name of a private topic here ([[private_topic]])", .0.as_str())]
    Private(TopicName),
    #[error("this is an invite, and no topic's name")]
    Invite,
    #[error(
        "as many topics were joined by a visit as topics.join_on_visit allows; one of them is left \
         when nobody has been there for a while"
    )]
    TooManyVisits,
    #[error("a plugin does not let the topic {:?} be joined by a visit", .0.as_str())]
    NotForVisits(TopicName),
    #[error("a gateway is in at most {MAX_TOPICS} topics at once; leave another one first")]
    TooMany,
    #[error("{:?} is no private topic of this gateway", .0.as_str())]
    NotPrivate(TopicName),
    #[error("this gateway is in another topic of the name {:?}; leave that first", .0.as_str())]
    NameTaken(TopicName),
    #[error(
        "this gateway was in another private topic of the name {:?}, and still has its events", .0.as_str()
    )]
    NameUsed(TopicName),
    #[error("{0:?} is no endpoint id; `nostr-gateway topic show` lists those of the members")]
    Endpoint(String),
    #[error("no member has let this gateway in yet")]
    NotAdmitted,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the secret store failed: {0}")]
    Secrets(#[from] SecretError),
    #[error(
        "the topic was left, but its secret could not be removed; leave it once more for that: {0}"
    )]
    SecretStays(SecretError),
    #[error(transparent)]
    CannotSync(#[from] CannotSync),
    #[error(
        "the operator of this gateway left the topic {:?}; only `nostr-gateway topic join` joins it \
         again",
        .0.as_str()
    )]
    LeftByCommand(TopicName),
    #[error(
        "the admin key of this topic is here, and leaving would forget it: without it nobody can \
         invite anybody, leave anybody out or change the secret any more. To keep it, write down what \
         `nostr-gateway topic export-admin` prints, or take it to another member with `topic \
         import-admin`; to leave without it, add --forget-admin-key"
    )]
    AdminKeyHere,
    #[error(
        "this gateway is not in the topic at the moment, but its secret is still here, and the topic's \
         admin key may be in it. To remove it, add --forget-admin-key"
    )]
    SecretHere,
    #[error(
        "this topic could not be joined again, the log of the start tells why. Its secret is not to be \
         found at the moment; should it come back, the topic's admin key may be in it. To leave without \
         it, add --forget-admin-key"
    )]
    SecretAway,
    #[error(
        "a secret of this topic from before is still here, and the topic's admin key may be in it: \
         joining would overwrite it. To give it up, run `nostr-gateway topic leave --forget-admin-key \
         {:?}` first", .0.as_str()
    )]
    AdminKeyOfBefore(TopicName),
    #[error("this gateway has left the topic")]
    Left,
    #[error("the gateway is stopping")]
    Stopping,
    #[error("the change could not be stored: {0}")]
    Store(#[from] StoreError),
}

impl From<CircleError> for TopicError {
    fn from(error: CircleError) -> Self {
        match error {
            CircleError::Secrets(error) => Self::Secrets(error),
            CircleError::Store(error) => Self::Store(error),
            CircleError::AdminKeyHere => Self::AdminKeyHere,
            CircleError::SecretHere => Self::SecretHere,
            CircleError::SecretAway => Self::SecretAway,
            CircleError::Left => Self::Left,
            CircleError::Stopping => Self::Stopping,
        }
    }
}

/// What came of joining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    Joined,
    /// It was joined before. If that was because of a visit, it stays joined from now on.
    Already,
}

/// Joins on visit.
#[derive(Debug, Clone, Copy)]
pub struct VisitRules {
    /// Topics joined so at once; 0 for none.
    pub most: usize,
    /// How long nobody has been on the URL of a topic that is left again.
    pub idle: Duration,
}

/// Which topics we are in, and all that changes with it.
pub struct Membership {
    pub(super) shared: Shared,
    pub(super) circles: Circles,
    /// Addresses of endpoints, beside what the lookups find.
    pub(super) known: MemoryLookup,
    pub(super) net: Arc<Net>,
    pub(super) links: Links,
    pub(super) secrets: Arc<dyn SecretStore>,
    pub(super) swarms: Arc<Swarms>,
    pub(super) joined: JoinedTopics,
    pub(super) private: PrivateTopics,
    pub(super) store: Arc<dyn TopicStore>,
    pub(super) lanes: Lanes,
    pub(super) visits: VisitRules,
    pub(super) visit_policy: Arc<dyn VisitPolicy>,
    /// One question to it at a time: visitors may be many.
    pub(super) asking: tokio::sync::Mutex<()>,
    pub(super) left: LeftTopics,
    pub(super) failed: FailedTopics,
    /// One change at a time: each is several steps.
    pub(super) changing: tokio::sync::Mutex<()>,
}

impl Membership {
    /// Joins the configured topics and those that were joined before the restart.
    ///
    /// # Errors
    /// When the latter cannot be read.
    pub(super) async fn start(&self) -> Result<(), StoreError> {
        self.start_private().await?;
        let configured = self.joined.all();
        for name in configured.iter() {
            self.enter(name.clone(), HowJoined::Config, unix_now()).await;
        }
        let kept = self.store.load().await?;
        let is_new = |topic: &&KeptTopic| !topic.private && !configured.contains(&topic.name);
        let (visits, others): (Vec<_>, Vec<_>) =
            kept.iter().filter(is_new).partition(|topic| topic.how == HowJoined::Visit);
        // The newest visits, as far as the setting of today allows.
        let (past, visits) = visits.split_at(visits.len().saturating_sub(self.visits.most));
        for topic in past {
            self.store.forget(topic.name.clone()).await?;
        }
        for topic in others.iter().chain(visits) {
            if self.private.contains(&topic.name) {
                tracing::warn!(topic = %topic.name, "not joined again: it is the name of a private topic now");
                self.fail(topic, TopicError::Private(topic.name.clone()));
            } else if self.swarms.len() >= MAX_TOPICS {
                tracing::warn!(topic = %topic.name, "not joined again: {}", TopicError::TooMany);
                self.fail(topic, TopicError::TooMany);
            } else {
                self.enter(topic.name.clone(), topic.how, topic.joined_at).await;
            }
        }
        Ok(())
    }

    /// Shows a public topic of the last run as failed. Who has its name now is shown instead.
    fn fail(&self, topic: &KeptTopic, why: TopicError) {
        if self.swarms.get(&topic.name).is_none() && self.failed.get(&topic.name).is_none() {
            let (name, reason) = (topic.name.clone(), why.to_string());
            self.failed.insert(name, topic.private, topic.how, topic.joined_at, reason);
        }
    }

    /// Joins a public topic, now and after every restart. Returns as soon as it is joined; neighbors
    /// are found in the background.
    ///
    /// # Errors
    /// When there are too many, the name belongs to something else, or it cannot be stored.
    pub async fn join(
        self: &Arc<Self>,
        name: TopicName,
        how: HowJoined,
    ) -> Result<Joining, TopicError> {
        self.check(&name)?;
        let own = self.clone();
        self.whole(async move { own.join_now(name, how).await }).await
    }

    /// Leaves a topic and tells its neighbors so. What it brought stays stored. One that was not
    /// joined again after the restart is left too.
    ///
    /// # Errors
    /// When we are not in it, the configuration says that we are, it cannot be stored, or the topic's
    /// admin key would be gone and `forget_admin_key` does not say that it may.
    pub async fn leave(
        self: &Arc<Self>,
        name: &TopicName,
        forget_admin_key: bool,
    ) -> Result<(), TopicError> {
        let (own, name) = (self.clone(), name.clone());
        self.whole(async move {
            let _changing = own.changing.lock().await;
            match own.swarms.get(&name) {
                Some(swarm) => match swarm.state.circle() {
                    Some(circle) => return own.leave_private(circle, forget_admin_key).await,
                    None => own.leave_now(&name, |_| true).await.map(drop)?,
                },
                None => own.leave_absent(&name, forget_admin_key).await?,
            }
            own.left.insert(name);
            Ok(())
        })
        .await
    }

    /// Sees to it that a topic of the last run that could not be joined again stays away. Whoever
    /// calls has the lock.
    async fn leave_absent(
        &self,
        name: &TopicName,
        forget_admin_key: bool,
    ) -> Result<(), TopicError> {
        let private = self.leave_absent_private(name, forget_admin_key).await?;
        let public = self.store.forget(name.clone()).await?;
        if !private && !public {
            return Err(match self.private.contains(name) {
                true => TopicError::Private(name.clone()),
                false => TopicError::NotJoined(name.clone()),
            });
        }
        self.failed.remove(name);
        tracing::info!(topic = %name, "left a topic that was not joined again");
        Ok(())
    }

    /// Makes a change to its end, also when whoever asked for it goes away in the middle.
    pub(super) async fn whole<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, TopicError>> + Send + 'static,
    ) -> Result<T, TopicError> {
        let (done, result) = oneshot::channel();
        self.shared.tasks.spawn("membership", async move {
            let _ = done.send(change.await);
        });
        result.await.unwrap_or(Err(TopicError::Stopping))
    }

    async fn join_now(&self, name: TopicName, how: HowJoined) -> Result<Joining, TopicError> {
        let _changing = self.changing.lock().await;
        if how == HowJoined::Visit && self.left.contains(&name) {
            return Err(TopicError::LeftByCommand(name));
        }
        if let Some(swarm) = self.swarms.get(&name) {
            if (swarm.how, how) == (HowJoined::Visit, HowJoined::Command) {
                self.keep(&name, how, swarm.joined_at).await?;
                self.swarms.rejoined(&name, how);
            }
            return Ok(Joining::Already);
        }
        if self.shared.tasks.token().is_cancelled() {
            return Err(TopicError::Stopping);
        }
        if how == HowJoined::Visit && self.visited() >= self.visits.most {
            return Err(TopicError::TooManyVisits);
        }
        if self.swarms.len() >= MAX_TOPICS {
            return Err(TopicError::TooMany);
        }
        let now = unix_now();
        self.keep(&name, how, now).await?;
        tracing::info!(topic = %name, how = how.name(), "joining a topic");
        self.left.remove(&name);
        self.enter(name, how, now).await;
        Ok(Joining::Joined)
    }

    /// Reconciles a topic with all neighbors now. The answer tells how it goes, and ends with it.
    ///
    /// # Errors
    /// When the topic is not joined, nothing is reconciled in it, or too many watch.
    pub fn sync(&self, name: &TopicName) -> Result<watch::Receiver<SyncProgress>, TopicError> {
        if self.swarms.get(name).is_none() {
            return Err(TopicError::NotJoined(name.clone()));
        }
        Ok(self.shared.library.sync_now(name)?)
    }

    /// Leaves it if this still holds. Whoever calls has the lock.
    async fn leave_now(
        &self,
        name: &TopicName,
        holds: impl Fn(&Swarm) -> bool,
    ) -> Result<bool, TopicError> {
        let swarm = self.swarms.get(name).ok_or_else(|| TopicError::NotJoined(name.clone()))?;
        if swarm.how == HowJoined::Config {
            return Err(TopicError::Configured(name.clone()));
        }
        if !holds(&swarm) {
            return Ok(false);
        }
        // On disk first: a topic that was left does not come back.
        self.store.forget(name.clone()).await?;
        // From here on nothing enters it, and its clients are sent away.
        self.joined.remove(name);
        self.end(&swarm).await;
        Ok(true)
    }

    pub(super) async fn end(&self, swarm: &Swarm) {
        let name = swarm.state.name();
        self.swarms.remove(name);
        if !swarm.tasks.stop(LEAVE).await {
            tracing::warn!(topic = %name, "some tasks of the topic did not end in time");
        }
        self.lanes.close(name.clone()).await;
        swarm.state.over();
        tracing::info!(topic = %name, "left a topic");
    }

    /// Whether a public topic may have this name.
    fn check(&self, name: &TopicName) -> Result<(), TopicError> {
        if is_meant_as_invite(name.as_str()) {
            return Err(TopicError::Invite);
        }
        if self.private.contains(name) {
            return Err(TopicError::Private(name.clone()));
        }
        Ok(())
    }

    async fn keep(&self, name: &TopicName, how: HowJoined, at: u64) -> Result<(), StoreError> {
        self.store.keep(KeptTopic { name: name.clone(), how, joined_at: at, private: false }).await
    }

    async fn enter(&self, name: TopicName, how: HowJoined, joined_at: u64) {
        let (swarm, queue) = self.shared.join(&name, how, joined_at);
        // Before anything can be committed for the topic: the log is followed from there on.
        self.lanes.open(name.clone(), queue, swarm.state.count()).await;
        self.failed.remove(swarm.state.name());
        self.swarms.insert(swarm);
        self.joined.insert(name);
    }

    /// Leaves the topics that nobody has visited for a while, until shutdown.
    pub(super) async fn leave_idle(self: Arc<Self>, token: CancellationToken) {
        let [shortest, longest] = LOOKS;
        let pause = (self.visits.idle / 4).clamp(shortest, longest);
        while token.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let is_idle = |swarm: &Swarm| {
                swarm.how == HowJoined::Visit
                    && self.joined.idle_for(swarm.state.name()) >= self.visits.idle
            };
            for swarm in self.swarms.all().iter().filter(|swarm| is_idle(swarm)) {
                let _changing = self.changing.lock().await;
                if let Err(error) = self.leave_now(swarm.state.name(), is_idle).await {
                    tracing::warn!(topic = %swarm.state.name(), %error, "cannot leave an idle topic");
                }
            }
        }
    }

    /// Whether a topic that is not joined may be joined by a visit, as far as plugins say. Last, what
    /// costs most.
    async fn ask_policy(&self, name: &TopicName) -> Result<(), TopicError> {
        self.check(name)?;
        if self.swarms.get(name).is_some() {
            return Ok(());
        }
        let _asking = self.asking.lock().await;
        if self.visited() >= self.visits.most {
            return Err(TopicError::TooManyVisits);
        }
        let (policy, asked) = (self.visit_policy.clone(), name.clone());
        match tasks::blocking(move || policy.may_visit(&asked)).await {
            Ok(true) => Ok(()),
            _ => Err(TopicError::NotForVisits(name.clone())),
        }
    }

    fn visited(&self) -> usize {
        self.swarms.all().iter().filter(|swarm| swarm.how == HowJoined::Visit).count()
    }
}

impl TopicDoor for Membership {
    fn visit(self: Arc<Self>, name: TopicName) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            if self.visits.most == 0 {
                return Err(TopicError::NotJoined(name).to_string());
            }
            self.ask_policy(&name).await.map_err(|error| error.to_string())?;
            self.join(name, HowJoined::Visit).await.map(drop).map_err(|error| error.to_string())
        })
    }
}
