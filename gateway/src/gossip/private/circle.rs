//! The state of one private topic while the gateway runs.

use std::{collections::BTreeSet, sync::Arc};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::{Mutex, Notify, oneshot};

use super::keep::Keep;
use crate::{
    clock::unix_now,
    pipeline::{RotationMember, RotationQuestion, SecretError, StoreError},
    protocol::{
        TopicName, hex,
        private::{
            MemberId, Topic,
            admin_key::AdminKey,
            admission::Admission,
            derive::{EpochKeys, TopicKey},
            epochs::{EpochId, Epochs, Input, Moment, Output},
            message::Position,
            proof::{Binding, Role, Tag},
        },
    },
    tasks::Tasks,
};

/// Why a change was not made. Nothing of it was told to anybody.
#[derive(Debug, thiserror::Error)]
pub enum CircleError {
    #[error(transparent)]
    Secrets(#[from] SecretError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the topic's admin key would be forgotten")]
    AdminKeyHere,
    #[error("the secret of the topic, maybe with the admin key, would be forgotten")]
    SecretHere,
    #[error("the secret of the topic, maybe with the admin key, is away and would be given up")]
    SecretAway,
    #[error("this gateway has left the topic")]
    Left,
    #[error("the gateway is stopping")]
    Stopping,
}

/// Who is in one private topic, as far as this gateway knows, and its secrets.
pub struct Circle {
    me: MemberId,
    topic: Topic,
    key: TopicKey,
    /// Exchanged by one step after the other; whoever only looks waits for nobody.
    epochs: ArcSwap<Epochs>,
    /// Whose holder may change it; whether the topic was left.
    turn: Mutex<bool>,
    keep: Keep,
    tasks: Tasks,
    /// The swarms to be in may be others now.
    pub changed: Notify,
    /// Meet the members one is connected with again.
    pub near: Notify,
    /// Meet all members: this gateway made what is new.
    pub far: Notify,
}

/// A private topic, for `topic show`. Holds no secret.
#[derive(Debug, Clone, Serialize)]
pub struct PrivateStatus {
    /// The admin's public key, hexadecimal.
    pub admin: String,
    /// Whether this gateway has the admin's key.
    pub is_admin: bool,
    /// Whether a member has let us in.
    pub is_admitted: bool,
    pub epoch: Option<u64>,
    /// When the epoch began, in Unix seconds.
    pub since: Option<u64>,
    /// The epochs whose secrets are held, oldest first.
    pub reads: Vec<u64>,
    pub members: Vec<Member>,
    /// Invites outstanding.
    pub invites: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct Member {
    /// Endpoint id, hexadecimal.
    pub id: String,
    /// On the roster since, in Unix seconds; `None` for one who was admitted after it.
    pub since: Option<u64>,
}

impl Circle {
    /// `tasks` are those that outlive whoever asks for a change.
    pub fn new(me: MemberId, epochs: Epochs, keep: Keep, tasks: Tasks) -> Arc<Self> {
        let (topic, key) = (epochs.topic().clone(), epochs.topic_key().clone());
        Arc::new(Self {
            me,
            topic,
            key,
            epochs: ArcSwap::from_pointee(epochs),
            turn: Mutex::new(false),
            keep,
            tasks,
            changed: Notify::new(),
            near: Notify::new(),
            far: Notify::new(),
        })
    }

    pub fn me(&self) -> MemberId {
        self.me
    }

    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    pub fn keep(&self) -> &Keep {
        &self.keep
    }

    /// This gateway's tag on a connection.
    pub fn tag(&self, binding: &Binding, role: Role) -> Tag {
        binding.tag(&self.topic, &self.key, role)
    }

    /// Whether the tag is that of this topic. Constant time.
    pub fn is_named_by(&self, binding: &Binding, role: Role, tag: &Tag) -> bool {
        binding.find(tag, role, [(&self.topic, &self.key)]).is_some()
    }

    pub fn position(&self) -> Position {
        self.epochs.load().position()
    }

    pub fn admission(&self) -> Option<Admission> {
        self.epochs.load().admission().copied()
    }

    pub fn welcomes(&self, peer: MemberId, admission: Option<&Admission>) -> bool {
        self.epochs.load().welcomes(peer, admission)
    }

    pub fn is_member(&self, peer: MemberId) -> bool {
        self.epochs.load().is_member(peer)
    }

    pub fn is_behind(&self, position: &Position) -> bool {
        self.epochs.load().is_behind(position)
    }

    /// All members but this gateway; nobody before it was admitted.
    pub fn others(&self) -> BTreeSet<MemberId> {
        let mut members = self.epochs.load().members();
        members.remove(&self.me);
        members
    }

    /// The keys of an epoch that is read.
    pub fn keys(&self, epoch: EpochId) -> Option<EpochKeys> {
        self.epochs.load().keys(epoch)
    }

    /// The epochs to be read, oldest first, and the one to publish in.
    pub fn swarms(&self) -> (Vec<EpochId>, Option<EpochId>) {
        let epochs = self.epochs.load();
        (epochs.reads(), epochs.publishes_in())
    }

    pub fn publishes_in(&self) -> Option<EpochId> {
        self.epochs.load().publishes_in()
    }

    pub fn next_tick(&self) -> Option<u64> {
        self.epochs.load().next_tick()
    }

    /// Saves the state as it is.
    ///
    /// # Errors
    /// When it could not be saved, or the topic was left.
    pub async fn save(&self) -> Result<(), CircleError> {
        let left = self.turn.lock().await;
        if *left {
            return Err(CircleError::Left);
        }
        self.keep.save(&self.epochs.load_full()).await
    }

    /// Notes on disk that the topic was left. From here on nothing of it is saved; its secrets are to
    /// be forgotten next.
    ///
    /// # Errors
    /// When the admin's key would be forgotten and is not to be, or the disk fails. Then everything is
    /// as it was.
    pub async fn leave(&self, forget_admin_key: bool) -> Result<(), CircleError> {
        let mut left = self.turn.lock().await;
        let epochs = self.epochs.load_full();
        if epochs.is_admin() && !forget_admin_key {
            return Err(CircleError::AdminKeyHere);
        }
        self.keep.leave(epochs.open_state()).await?;
        *left = true;
        Ok(())
    }

    /// The admin's key, if it is here.
    pub fn admin_key(&self) -> Option<AdminKey> {
        let key = self.epochs.load().admin_key()?.clone();
        Some(AdminKey { name: self.topic.name.clone(), key })
    }

    /// Makes a step, saves what it changed, and only then says what else is to be done: hand-overs,
    /// tellings, invites and refusals. Swarms and meetings are seen to by the topic's own task.
    ///
    /// # Errors
    /// When it could not be saved; then nothing has changed.
    pub async fn step(self: &Arc<Self>, input: Input) -> Result<Vec<Output>, CircleError> {
        let far = matches!(input, Input::Command(_));
        // A task of its own. It goes to its end also when whoever asked for it goes away in the middle:
        // the disk must not be ahead of what we know, nor what we know ahead of where we publish. And
        // its turn is not held by somebody who is not looked after at the moment.
        let (done, stepped) = oneshot::channel();
        let own = self.clone();
        self.tasks.spawn("step of a private topic", async move {
            let outputs = own.step_now(input).await;
            let _ = done.send(outputs.map(|outputs| own.wake(outputs, far)));
        });
        stepped.await.unwrap_or(Err(CircleError::Stopping))
    }

    /// Wakes the topic's own task for what it sees to. Returns the rest.
    fn wake(&self, mut outputs: Vec<Output>, far: bool) -> Vec<Output> {
        let (mut swarms, mut spread) = (false, false);
        outputs.retain(|output| {
            match output {
                Output::Join(_) | Output::Publish(_) | Output::Leave(_) => swarms = true,
                Output::Spread => spread = true,
                Output::Persist => {}
                _ => return true,
            }
            false
        });
        if swarms {
            self.changed.notify_one();
        }
        if spread {
            if far { &self.far } else { &self.near }.notify_one();
        }
        outputs
    }

    async fn step_now(&self, input: Input) -> Result<Vec<Output>, CircleError> {
        let left = self.turn.lock().await;
        if *left {
            // What was forgotten on disk is not to be saved again.
            return Err(CircleError::Left);
        }
        let mut next = Epochs::clone(&self.epochs.load());
        let outputs = with_moment(|moment| next.step(input, moment));
        if outputs.contains(&Output::Persist) {
            self.keep.save(&next).await?;
            self.epochs.store(Arc::new(next));
        }
        Ok(outputs)
    }

    pub fn is_admin(&self) -> bool {
        self.epochs.load().is_admin()
    }

    /// Takes note that members are there. Those who are none are passed over.
    pub fn saw(&self, peers: impl IntoIterator<Item = MemberId>) {
        let epochs = self.epochs.load();
        let mut seen = self.keep.seen();
        seen.retain(|member, _| epochs.is_member(*member));
        for peer in peers {
            if epochs.is_member(peer) {
                seen.insert(peer, unix_now());
            }
        }
    }

    /// What a rotation policy is told; `None` where the admin's key is not.
    pub fn question(&self, now: u64) -> Option<RotationQuestion> {
        let epochs = self.epochs.load();
        let roster = epochs.roster().filter(|_| epochs.is_admin())?;
        let seen = self.keep.seen();
        let members = epochs.members().into_iter().map(|id| RotationMember {
            id: id.to_string(),
            is_self: id == self.me,
            since: roster.body().members.get(&id).copied(),
            last_seen: seen.get(&id).copied(),
        });
        Some(RotationQuestion {
            name: self.topic.name.clone(),
            epoch: roster.place().epoch,
            since: epochs.epoch_since()?,
            now,
            members: members.collect(),
        })
    }

    pub fn status(&self) -> PrivateStatus {
        let epochs = self.epochs.load();
        let roster = epochs.roster();
        let listed = roster.map(|roster| &roster.body().members);
        let members = epochs.members().into_iter().map(|id| Member {
            id: id.to_string(),
            since: listed.and_then(|listed| listed.get(&id).copied()),
        });
        PrivateStatus {
            admin: hex::encode(&self.topic.admin),
            is_admin: epochs.is_admin(),
            is_admitted: roster.is_some(),
            epoch: roster.map(|roster| roster.place().epoch),
            since: epochs.epoch_since(),
            reads: epochs.reads().iter().map(|epoch| epoch.number).collect(),
            members: members.collect(),
            invites: roster.map_or(0, |roster| roster.body().invites.len()),
        }
    }
}

/// Time and randomness for one step.
pub fn with_moment<T>(step: impl FnOnce(&mut Moment<'_>) -> T) -> T {
    // A generator for keys, seeded by the operating system.
    let mut random = rand::random::<[u8; 32]>;
    step(&mut Moment { now: unix_now(), random: &mut random })
}

/// The private topics that we are in. Cheap to clone; all clones see the same.
#[derive(Clone)]
pub struct Circles {
    me: MemberId,
    list: Arc<ArcSwap<Vec<Arc<Circle>>>>,
}

impl Circles {
    pub fn new(me: MemberId) -> Self {
        Self { me, list: Arc::default() }
    }

    /// Our own endpoint.
    pub fn me(&self) -> MemberId {
        self.me
    }

    pub fn insert(&self, circle: &Arc<Circle>) {
        self.list.rcu(|circles| {
            let mut circles = Vec::clone(circles);
            circles.push(circle.clone());
            circles
        });
    }

    pub fn remove(&self, name: &TopicName) {
        self.list.rcu(|circles| {
            let others = circles.iter().filter(|circle| circle.topic.name != *name);
            others.cloned().collect::<Vec<_>>()
        });
    }

    /// The topic that a tag names. Takes the same time whichever it is.
    pub fn find(&self, binding: &Binding, tag: &Tag) -> Option<Arc<Circle>> {
        let circles = self.list.load();
        let known = circles.iter().map(|circle| (&circle.topic, &circle.key));
        binding.find(tag, Role::Initiator, known).and_then(|at| circles.get(at).cloned())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::{
        gossip::tests::MemoryTopics, pipeline::MemorySecrets, protocol::private::epochs::Command,
    };

    fn den() -> Arc<Circle> {
        let (me, name) = (MemberId([7; 32]), TopicName::new("den").unwrap());
        let (epochs, _) = with_moment(|moment| Epochs::create(me, name, moment));
        let (secrets, store) = (Arc::<MemorySecrets>::default(), Arc::<MemoryTopics>::default());
        let keep = Keep::new(secrets, store, epochs.topic().clone(), 7, Vec::new());
        Circle::new(me, epochs, keep, Tasks::new())
    }

    fn rotate() -> Input {
        Input::Command(Command::Rotate { exclude: BTreeSet::new(), grace: 0 })
    }

    #[tokio::test]
    async fn a_step_wakes_the_topic_also_when_nobody_waits_for_it() {
        let circle = den();
        // Whoever asks goes away before anything has been done.
        assert!(circle.step(rotate()).now_or_never().is_none());
        let woken = async { tokio::join!(circle.changed.notified(), circle.far.notified()) };
        tokio::time::timeout(Duration::from_secs(5), woken).await.expect("it is woken");
        assert_eq!(circle.publishes_in().unwrap().number, 2);
    }

    #[tokio::test]
    async fn nothing_is_saved_of_a_topic_that_was_left() {
        let circle = den();
        circle.save().await.unwrap();
        assert!(matches!(circle.leave(false).await, Err(CircleError::AdminKeyHere)));
        circle.leave(true).await.unwrap();
        assert!(matches!(circle.save().await, Err(CircleError::Left)));
        let error = circle.step(rotate()).await.unwrap_err();
        assert!(matches!(error, CircleError::Left), "{error}");
    }
}
