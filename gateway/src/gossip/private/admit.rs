//! Creating, joining, inviting to, rotating and leaving private topics while the gateway runs.

use std::{collections::BTreeSet, sync::Arc};

use iroh::EndpointId;
use zeroize::Zeroizing;

use super::{
    circle::{Circle, PrivateStatus, with_moment},
    keep::{self, Keep},
};
use crate::{
    clock::unix_now,
    gossip::{
        membership::{Joining, Membership, TopicError},
        peers,
    },
    pipeline::{HowJoined, KeptPrivate, StoreError, joined::MAX_TOPICS},
    protocol::{
        TopicName,
        private::{
            MemberId,
            admin_key::AdminKey,
            epochs::{Command, Epochs, Input, Output, Refusal},
            invite::{Invite, Peer, is_meant_as_invite},
            roster::Uses,
        },
    },
};

/// The grace of a rotation that says nothing else, in seconds.
const GRACE: u64 = 600;

/// Peers that an invite names beside this gateway, and addresses of each.
const INVITE_PEERS: usize = 3;
const ADDRESSES: usize = 4;

impl Membership {
    /// Joins the private topics of the last run. One whose secret is gone stays away, with a line in
    /// the log; its events stay private.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(in crate::gossip) async fn start_private(&self) -> Result<(), StoreError> {
        for kept in self.store.private().await? {
            let name = kept.name.clone();
            // First of all: nothing of it is to be seen by others.
            self.private.insert(&name);
            self.joined.remove(&name);
            if kept.is_left {
                if keep::is_secret_left_behind(&kept, &*self.secrets).await {
                    tracing::warn!(
                        topic = %name,
                        "a private topic was left, but its secret is still in the secret store; \
                         `nostr-gateway topic leave` removes it"
                    );
                }
                continue;
            }
            let (me, now, joined_at) = (self.me(), unix_now(), kept.joined_at);
            let (secrets, store) = (self.secrets.clone(), self.store.clone());
            match keep::restore(me, kept, secrets, store, now).await {
                Ok((epochs, keep)) => self.enter_private(self.circle_of(epochs, keep)).await,
                Err(error) => {
                    tracing::error!(topic = %name, error, "a private topic cannot be joined again");
                    self.failed.insert(name, true, HowJoined::Command, joined_at, error);
                }
            }
        }
        Ok(())
    }

    /// Makes a private topic, with this gateway as its admin and only member.
    ///
    /// # Errors
    /// When the name belongs to something else, or it cannot be stored.
    pub async fn create_private(self: &Arc<Self>, name: TopicName) -> Result<(), TopicError> {
        let own = self.clone();
        self.whole(async move {
            let _changing = own.changing.lock().await;
            own.may_enter(&name, None).await?;
            let (epochs, _) = with_moment(|moment| Epochs::create(own.me(), name.clone(), moment));
            let keep = own.keep_for(&epochs, Vec::new());
            let circle = own.circle_of(epochs, keep);
            circle.save().await?;
            tracing::info!(topic = %name, "made a private topic");
            own.enter_private(circle).await;
            Ok(())
        })
        .await
    }

    /// Joins the private topic of an invite: looks for members, and is let in by one of them.
    ///
    /// # Errors
    /// When the name belongs to something else, it cannot be stored, or the topic's admin key of before
    /// may be here and would be overwritten.
    pub async fn accept(self: &Arc<Self>, invite: Box<Invite>) -> Result<Joining, TopicError> {
        let own = self.clone();
        self.whole(async move {
            let _changing = own.changing.lock().await;
            let name = &invite.topic.name;
            if let Ok(circle) = own.circle(name)
                && *circle.topic() == invite.topic
            {
                return Ok(Joining::Already);
            }
            own.may_enter(name, Some(&invite.topic.admin)).await?;
            let (epochs, _) = Epochs::accept(own.me(), &invite);
            let peers = invite.peers.iter().flat_map(Peer::entries).collect();
            let keep = own.keep_for(&epochs, peers);
            if keep.may_overwrite_admin_key().await? {
                own.remember(&epochs, &keep).await?;
                return Err(TopicError::AdminKeyOfBefore(name.clone()));
            }
            let circle = own.circle_of(epochs, keep);
            circle.save().await?;
            tracing::info!(topic = %name, "joining a private topic by an invite");
            own.enter_private(circle).await;
            Ok(Joining::Joined)
        })
        .await
    }

    /// Makes an invite, for one gateway or for many. It is a secret.
    ///
    /// # Errors
    /// When this gateway does not have the admin's key, or there are too many invites.
    pub async fn invite(&self, name: &TopicName, once: bool) -> Result<String, TopicError> {
        let circle = self.circle(name)?;
        let uses = if once { Uses::Once } else { Uses::Many };
        let peers = self.invite_peers(name);
        let outputs = circle.step(Input::Command(Command::Invite { uses, peers })).await?;
        for output in outputs {
            match output {
                Output::Invited(invite) => return Ok(invite.encode().to_string()),
                Output::Refused(refusal) => return Err(refusal.into()),
                _ => {}
            }
        }
        Err(TopicError::NotAdmitted)
    }

    /// Gives the topic a new secret, which the members whose endpoint ids are in `exclude` do not
    /// get. The old one is read for so many seconds more.
    ///
    /// # Errors
    /// When this gateway does not have the admin's key, or one of the endpoints is no member.
    pub async fn rotate(
        &self,
        name: &TopicName,
        exclude: &[String],
        grace_s: Option<u64>,
    ) -> Result<(), TopicError> {
        let circle = self.circle(name)?;
        let member = |text: &String| {
            let id = text.trim().parse::<EndpointId>();
            id.map(|id| MemberId(*id.as_bytes())).map_err(|_| TopicError::Endpoint(text.clone()))
        };
        let exclude = exclude.iter().map(member).collect::<Result<BTreeSet<_>, _>>()?;
        let grace = u32::try_from(grace_s.unwrap_or(GRACE)).unwrap_or(u32::MAX);
        let left_out = exclude.len();
        let rotate = Input::Command(Command::Rotate { exclude, grace });
        for output in circle.step(rotate).await? {
            if let Output::Refused(refusal) = output {
                return Err(refusal.into());
            }
        }
        tracing::info!(topic = %name, left_out, grace, "gave a private topic a new secret");
        Ok(())
    }

    /// The admin's key as a string, for another gateway of the admin. It is the topic's greatest
    /// secret.
    ///
    /// # Errors
    /// When this gateway does not have it.
    pub fn export_admin(&self, name: &TopicName) -> Result<Zeroizing<String>, TopicError> {
        let key = self.circle(name)?.admin_key().ok_or(Refusal::NotAdmin)?;
        tracing::info!(topic = %name, "handed out the admin key of a private topic");
        Ok(key.encode())
    }

    /// Makes this gateway one of the admin's. It must be a member already.
    ///
    /// # Errors
    /// When it is in no such topic, no member has let it in yet, or it cannot be stored.
    pub async fn import_admin(&self, key: AdminKey) -> Result<Joining, TopicError> {
        let circle = self.circle(&key.name)?;
        if *circle.topic() != key.topic() {
            return Err(Refusal::OtherAdmin.into());
        }
        if circle.publishes_in().is_none() {
            return Err(TopicError::NotAdmitted);
        }
        if circle.is_admin() {
            return Ok(Joining::Already);
        }
        let administer = Command::Administer(Box::new(key.key));
        for output in circle.step(Input::Command(administer)).await? {
            if let Output::Refused(refusal) = output {
                return Err(refusal.into());
            }
        }
        tracing::info!(topic = %key.name, "took in the admin key of a private topic");
        Ok(Joining::Joined)
    }

    /// Who is in a private topic; `None` for a public one.
    pub fn private_status(&self, name: &TopicName) -> Option<PrivateStatus> {
        let circle = self.circle(name).ok()?;
        Some(circle.status())
    }

    /// A private topic that we are in.
    pub(in crate::gossip) fn circle(&self, name: &TopicName) -> Result<Arc<Circle>, TopicError> {
        let swarm = self.swarms.get(name).ok_or_else(|| TopicError::NotJoined(name.clone()))?;
        swarm.state.circle().cloned().ok_or_else(|| TopicError::NotPrivate(name.clone()))
    }

    /// Leaves a private topic. Whoever calls has the lock.
    pub(in crate::gossip) async fn leave_private(
        &self,
        circle: &Arc<Circle>,
        forget_admin_key: bool,
    ) -> Result<(), TopicError> {
        let name = &circle.topic().name;
        circle.leave(forget_admin_key).await?;
        // It is left, whatever comes of the secret. The sooner that is gone the better: a topic's tasks
        // may take a while to end.
        let forgotten = circle.keep().forget_secrets().await;
        self.circles.remove(name);
        if let Some(swarm) = self.swarms.get(name) {
            self.end(&swarm).await;
        }
        forgotten.map_err(TopicError::SecretStays)
    }

    /// Leaves a private topic of the last run that could not be joined again. Returns whether there was
    /// one. Whoever calls has the lock.
    pub(in crate::gossip) async fn leave_absent_private(
        &self,
        name: &TopicName,
        forget_admin_key: bool,
    ) -> Result<bool, TopicError> {
        let kept = self.store.private().await?.into_iter().find(|kept| kept.name == *name);
        let Some(kept) = kept else { return Ok(false) };
        Ok(keep::leave_absent(kept, &*self.secrets, &*self.store, forget_admin_key).await?)
    }

    /// Notes a topic of which only the secret is left, so that `topic leave` finds that.
    async fn remember(&self, epochs: &Epochs, keep: &Keep) -> Result<(), TopicError> {
        let name = &epochs.topic().name;
        if !self.store.private().await?.iter().any(|kept| kept.name == *name) {
            keep.leave(epochs.open_state()).await?;
            self.private.insert(name);
        }
        Ok(())
    }

    fn me(&self) -> MemberId {
        self.circles.me()
    }

    fn keep_for(&self, epochs: &Epochs, peers: Vec<String>) -> Keep {
        let topic = epochs.topic().clone();
        Keep::new(self.secrets.clone(), self.store.clone(), topic, unix_now(), peers)
    }

    fn circle_of(&self, epochs: Epochs, keep: Keep) -> Arc<Circle> {
        Circle::new(self.me(), epochs, keep, self.shared.tasks.clone())
    }

    /// Whether a private topic of this name may be entered. `admin` is the admin's public key.
    async fn may_enter(
        &self,
        name: &TopicName,
        admin: Option<&[u8; 32]>,
    ) -> Result<(), TopicError> {
        if is_meant_as_invite(name.as_str()) {
            return Err(TopicError::Invite);
        }
        if self.shared.tasks.token().is_cancelled() {
            return Err(TopicError::Stopping);
        }
        if self.swarms.get(name).is_some() || self.joined.contains(name.as_str()) {
            return Err(TopicError::NameTaken(name.clone()));
        }
        // The events of one private topic are not for the members of another.
        let is_other = |kept: &KeptPrivate| {
            let before = Epochs::topic_of(&kept.state).map(|topic| topic.admin);
            kept.name == *name && before.ok().as_ref() != admin
        };
        if self.store.private().await?.iter().any(is_other) {
            return Err(TopicError::NameUsed(name.clone()));
        }
        if self.swarms.len() >= MAX_TOPICS {
            return Err(TopicError::TooMany);
        }
        Ok(())
    }

    async fn enter_private(&self, circle: Arc<Circle>) {
        let name = circle.topic().name.clone();
        self.private.insert(&name);
        let mut first = Vec::new();
        for entry in circle.keep().peers() {
            let Ok(peer) = peers::parse(entry) else { continue };
            if !first.contains(&peer.id) {
                first.push(peer.id);
            }
            if !peer.is_empty() {
                self.known.add_endpoint_info(peer);
            }
        }
        let (swarm, queue) = self.shared.join_private(&circle, first);
        // Before anything can be committed for the topic: the log is followed from there on.
        self.lanes.open(name, queue, swarm.state.count()).await;
        self.circles.insert(&circle);
        self.failed.remove(swarm.state.name());
        self.swarms.insert(swarm);
    }

    /// Endpoints for an invite: this one, and neighbors that are reached directly.
    fn invite_peers(&self, name: &TopicName) -> Vec<Peer> {
        let addresses = self.net.endpoint().addr().ip_addrs().copied().take(ADDRESSES).collect();
        let mut peers = vec![Peer { id: self.me(), addresses }];
        let neighbors = self.swarms.get(name).map(|swarm| swarm.state.neighbors());
        for id in neighbors.unwrap_or_default().into_iter().take(INVITE_PEERS) {
            let path = self.links.path(&id).filter(|path| path.path == "direct");
            let addresses = path.and_then(|path| path.address.parse().ok()).into_iter().collect();
            peers.push(Peer { id: MemberId(*id.as_bytes()), addresses });
        }
        peers
    }
}
