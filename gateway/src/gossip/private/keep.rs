//! Where a private topic outlives the process: its secrets in the secret store, the rest in the
//! database.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::circle::CircleError;
use crate::{
    pipeline::{KeptPrivate, Secret, SecretStore, TopicStore},
    protocol::{
        hex,
        private::{MemberId, Topic, epochs::Epochs},
    },
};

/// Saves one topic.
#[derive(Clone)]
pub struct Keep {
    secrets: Arc<dyn SecretStore>,
    store: Arc<dyn TopicStore>,
    topic: Topic,
    secret_name: String,
    joined_at: u64,
    peers: Vec<String>,
    /// When members were last spoken with, in Unix seconds.
    seen: Arc<Mutex<BTreeMap<MemberId, u64>>>,
}

impl Keep {
    /// `peers` are the endpoints to begin with, as in `discovery.peers`.
    pub fn new(
        secrets: Arc<dyn SecretStore>,
        store: Arc<dyn TopicStore>,
        topic: Topic,
        joined_at: u64,
        peers: Vec<String>,
    ) -> Self {
        let secret_name = secret_name(&topic);
        Self { secrets, store, topic, secret_name, joined_at, peers, seen: Arc::default() }
    }

    pub fn joined_at(&self) -> u64 {
        self.joined_at
    }

    /// When members were last spoken with. It is saved together with everything else.
    pub fn seen(&self) -> MutexGuard<'_, BTreeMap<MemberId, u64>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peers(&self) -> &[String] {
        &self.peers
    }

    /// Saves durably; the secrets first, as `docs/private-topics.md` wants it.
    pub async fn save(&self, epochs: &Epochs) -> Result<(), CircleError> {
        let secret = epochs.secret_state();
        self.secrets.set(&self.secret_name, Secret::new(secret.to_vec())).await?;
        self.store.keep_private(self.kept(epochs.open_state(), false)).await?;
        Ok(())
    }

    /// Notes that the topic was left. That it was here, and so that its events are private, stays.
    pub async fn leave(&self, open: Vec<u8>) -> Result<(), CircleError> {
        Ok(self.store.keep_private(self.kept(open, true)).await?)
    }

    pub async fn forget_secrets(&self) -> Result<(), CircleError> {
        Ok(self.secrets.delete(&self.secret_name).await?)
    }

    fn kept(&self, state: Vec<u8>, is_left: bool) -> KeptPrivate {
        let (name, peers) = (self.topic.name.clone(), self.peers.clone());
        let seen = self.seen();
        let seen = seen.iter().flat_map(|(id, at)| id.0.into_iter().chain(at.to_be_bytes()));
        let seen = seen.collect();
        KeptPrivate { name, joined_at: self.joined_at, state, peers, seen, is_left }
    }
}

/// The state that was saved, and how to go on saving it.
///
/// # Errors
/// With a sentence for the log: the secret is not there, or the parts do not belong together.
pub async fn restore(
    me: MemberId,
    kept: KeptPrivate,
    secrets: Arc<dyn SecretStore>,
    store: Arc<dyn TopicStore>,
    now: u64,
) -> Result<(Epochs, Keep), String> {
    let damaged = || "what the database has of it is damaged".to_owned();
    let topic = Epochs::topic_of(&kept.state).map_err(|_| damaged())?;
    if topic.name != kept.name {
        return Err(damaged());
    }
    let keep = Keep::new(secrets, store, topic, kept.joined_at, kept.peers);
    for entry in kept.seen.as_chunks::<40>().0 {
        let (id, at) = entry.split_at(32);
        if let (Ok(id), Ok(at)) = (id.try_into(), at.try_into()) {
            keep.seen().insert(MemberId(id), u64::from_be_bytes(at));
        }
    }
    let secret = keep.secrets.get(&keep.secret_name).await.map_err(|error| error.to_string())?;
    let secret = secret.ok_or("its secret is not in the secret store any more")?;
    let epochs = Epochs::restore(me, &kept.state, secret.bytes(), now).map_err(|_| {
        "its secret and what the database has of it do not belong together; restore both from a \
         backup, or join by a new invite"
            .to_owned()
    })?;
    Ok((epochs, keep))
}

/// Leaves a topic that could not be restored: notes it, and forgets the secret if there is one. Returns
/// whether there was anything to be done.
///
/// # Errors
/// When the secret holds the admin's key, as far as that can be told, and it is not to be forgotten;
/// when the disk or the secret store fails.
pub async fn leave_absent(
    kept: KeptPrivate,
    secrets: &dyn SecretStore,
    store: &dyn TopicStore,
    forget_admin_key: bool,
) -> Result<bool, CircleError> {
    // Of what is damaged nobody can tell which secret it had.
    let topic = Epochs::topic_of(&kept.state).ok().filter(|topic| topic.name == kept.name);
    let secret_name = topic.as_ref().map(secret_name);
    let secret = match &secret_name {
        Some(name) => secrets.get(name).await?,
        None => None,
    };
    if kept.is_left && secret.is_none() {
        return Ok(false);
    }
    let may_be_admin = |secret: &Secret| Epochs::may_have_admin_key(secret.bytes());
    if !forget_admin_key && secret.as_ref().is_some_and(may_be_admin) {
        return Err(CircleError::SecretHere);
    }
    store.keep_private(KeptPrivate { is_left: true, ..kept }).await?;
    if let Some(name) = secret_name {
        secrets.delete(&name).await?;
    }
    Ok(true)
}

/// Names of secrets are seen by others: this one tells no topic.
fn secret_name(topic: &Topic) -> String {
    let name = topic.name.as_str().as_bytes();
    let bytes = Zeroizing::new([&topic.admin, name].concat());
    format!("topic/{}", hex::encode(&Sha256::digest(&*bytes)))
}
