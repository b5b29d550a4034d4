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
    pipeline::{KeptPrivate, Secret, SecretError, SecretStore, TopicStore},
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

    pub async fn forget_secrets(&self) -> Result<(), SecretError> {
        self.secrets.delete(&self.secret_name).await
    }

    /// Whether saving would overwrite an admin's key of before, as far as that can be told.
    ///
    /// # Errors
    /// When the secret store does not answer.
    pub async fn may_overwrite_admin_key(&self) -> Result<bool, SecretError> {
        let secret = self.secrets.get(&self.secret_name).await?;
        Ok(secret.is_some_and(|secret| Epochs::may_have_admin_key(secret.bytes())))
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
         backup, or give up what is here with `nostr-gateway topic leave` and join by a new invite"
            .to_owned()
    })?;
    Ok((epochs, keep))
}

/// Leaves a topic that could not be restored: notes it, and forgets the secret if there is one. Returns
/// whether there was anything to be done.
///
/// # Errors
/// When the secret holds the admin's key, as far as that can be told, and it is not to be forgotten:
/// of a secret that is away nobody can tell. When the disk or the secret store fails.
pub async fn leave_absent(
    kept: KeptPrivate,
    secrets: &dyn SecretStore,
    store: &dyn TopicStore,
    forget_admin_key: bool,
) -> Result<bool, CircleError> {
    // Of what is damaged nobody can tell which secret it had.
    let topic = Epochs::topic_of(&kept.state).ok().filter(|topic| topic.name == kept.name);
    let secret_name = topic.as_ref().map(secret_name);
    let found = match &secret_name {
        Some(name) => secrets.get(name).await,
        None => Ok(None),
    };
    match found {
        Ok(None) if kept.is_left => return Ok(false),
        // Whatever it is: it may go.
        _ if forget_admin_key => {}
        Ok(Some(secret)) if Epochs::may_have_admin_key(secret.bytes()) => {
            return Err(CircleError::SecretHere);
        }
        Ok(Some(_)) => {}
        Ok(None) => return Err(CircleError::SecretAway),
        Err(error) => return Err(error.into()),
    }
    store.keep_private(KeptPrivate { is_left: true, ..kept }).await?;
    if let Some(name) = secret_name {
        secrets.delete(&name).await?;
    }
    Ok(true)
}

/// Whether the secret of a topic that was left is still there, as far as that can be told.
pub async fn is_secret_left_behind(kept: &KeptPrivate, secrets: &dyn SecretStore) -> bool {
    let Ok(topic) = Epochs::topic_of(&kept.state) else { return false };
    matches!(secrets.get(&secret_name(&topic)).await, Ok(Some(_)))
}

/// Names of secrets are seen by others: this one tells no topic.
fn secret_name(topic: &Topic) -> String {
    let name = topic.name.as_str().as_bytes();
    let bytes = Zeroizing::new([&topic.admin, name].concat());
    format!("topic/{}", hex::encode(&Sha256::digest(&*bytes)))
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;
    use crate::{
        gossip::{private::circle::with_moment, tests::MemoryTopics},
        pipeline::{RestingPlace, SecretError},
        protocol::TopicName,
    };

    /// A secret store that answers nothing.
    struct Mute;

    fn mute<T: Send + 'static>() -> BoxFuture<'static, Result<T, SecretError>> {
        async { Err(SecretError("no answer".to_owned())) }.boxed()
    }

    impl SecretStore for Mute {
        fn rests_in(&self) -> RestingPlace {
            RestingPlace::Keyring
        }

        fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SecretError>> {
            mute()
        }

        fn set<'a>(&'a self, _: &'a str, _: Secret) -> BoxFuture<'a, Result<(), SecretError>> {
            mute()
        }

        fn delete<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), SecretError>> {
            mute()
        }

        fn list<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<String>, SecretError>> {
            mute()
        }
    }

    #[tokio::test]
    async fn a_topic_is_left_without_its_secret_store_if_the_operator_says_so() {
        let (me, name) = (MemberId([7; 32]), TopicName::new("den").unwrap());
        let (epochs, _) = with_moment(|moment| Epochs::create(me, name, moment));
        let store = Arc::<MemoryTopics>::default();
        let topic = epochs.topic().clone();
        let keep = Keep::new(Arc::new(Mute), store.clone(), topic, 7, Vec::new());
        store.keep_private(keep.kept(epochs.open_state(), false)).await.unwrap();
        for (forget_admin_key, is_left) in [(false, false), (true, true)] {
            let kept = store.private().await.unwrap().remove(0);
            let error = leave_absent(kept, &Mute, &*store, forget_admin_key).await.unwrap_err();
            // Also the second time the operator hears that the secret may still be there.
            assert!(matches!(error, CircleError::Secrets(_)), "{error}");
            assert_eq!(store.private().await.unwrap()[0].is_left, is_left);
        }
    }
}
