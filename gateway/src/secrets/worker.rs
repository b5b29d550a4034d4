//! A thread that owns a store and does one thing after the other, and callers that wait no longer than
//! they want to: a locked keyring may wait for its user for ever.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use futures_util::future::BoxFuture;
use tokio::{sync::oneshot, time::timeout};

use super::SecretsError;
use crate::{
    pipeline::{RestingPlace, Secret, SecretError, SecretStore, secrets::check_secret},
    tasks,
};

/// Calls that wait for their turn. One more is refused.
const QUEUE: usize = 256;

/// A store that blocks. It lives on one thread, so nothing in it is done twice at once.
pub(super) trait Backend: 'static {
    fn rests_in() -> RestingPlace;
    /// What errors call it.
    fn called() -> &'static str;
    /// Why it may take too long.
    fn when_slow() -> &'static str;
    fn get(&mut self, name: &str) -> Result<Option<Secret>, SecretsError>;
    fn set(&mut self, name: &str, secret: &Secret) -> Result<(), SecretsError>;
    fn delete(&mut self, name: &str) -> Result<(), SecretsError>;
    /// All names, in order.
    fn names(&mut self) -> Vec<String>;
}

type Job<B> = Box<dyn FnOnce(&mut B) + Send>;

/// The handle of the thread, which ends after the last handle.
pub(super) struct Worker<B> {
    jobs: Sender<Job<B>>,
    pub limit: Duration,
}

impl<B: Backend> Worker<B> {
    /// Starts the thread and opens the store on it.
    ///
    /// A thread that hangs beyond the limit is left alone: it ends when the keyring lets go of it.
    pub async fn start(
        limit: Duration,
        open: impl FnOnce() -> Result<B, SecretsError> + Send + 'static,
    ) -> Result<Self, SecretsError> {
        let (jobs, queue) = bounded(QUEUE);
        let (opened, is_open) = oneshot::channel();
        let body = move || match open() {
            Ok(backend) => {
                if opened.send(Ok(())).is_ok() {
                    work(backend, &queue);
                }
            }
            // Nobody waits any longer: they were told that it took too long.
            Err(error) => drop(opened.send(Err(error))),
        };
        let place = std::path::PathBuf::from(B::called());
        tasks::thread(format!("secrets-{}", B::rests_in().as_str()), body)
            .map_err(|source| SecretsError::Io { path: place, action: "open", source })?;
        answer::<B, _>(limit, is_open).await?;
        Ok(Self { jobs, limit })
    }

    /// Does something with the store. What nobody waits for any longer when its turn comes is not
    /// begun.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut B) -> Result<T, SecretsError> + Send + 'static,
    ) -> Result<T, SecretsError> {
        let (reply, answered) = oneshot::channel();
        let job: Job<B> = Box::new(move |backend| {
            if !reply.is_closed() {
                // Whoever left meanwhile was told that it took too long.
                drop(reply.send(work(backend)));
            }
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => SecretsError::Busy(B::called()),
            TrySendError::Disconnected(_) => SecretsError::Ended(B::called()),
        })?;
        answer::<B, _>(self.limit, answered).await
    }

    async fn named<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&mut B, &str) -> Result<T, SecretsError> + Send + 'static,
    ) -> Result<T, SecretError> {
        check_secret(name, None)?;
        let name = name.to_owned();
        Ok(self.call(move |backend| work(backend, &name)).await?)
    }
}

fn work<B>(mut backend: B, queue: &Receiver<Job<B>>) {
    for job in queue {
        job(&mut backend);
    }
}

async fn answer<B: Backend, T>(
    limit: Duration,
    reply: oneshot::Receiver<Result<T, SecretsError>>,
) -> Result<T, SecretsError> {
    match timeout(limit, reply).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(SecretsError::Ended(B::called())),
        Err(_) => Err(SecretsError::Timeout { what: B::called(), limit, why: B::when_slow() }),
    }
}

impl<B: Backend> SecretStore for Worker<B> {
    fn rests_in(&self) -> RestingPlace {
        B::rests_in()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SecretError>> {
        Box::pin(self.named(name, |backend, name| backend.get(name)))
    }

    fn set<'a>(&'a self, name: &'a str, secret: Secret) -> BoxFuture<'a, Result<(), SecretError>> {
        Box::pin(async move {
            check_secret(name, Some(&secret))?;
            self.named(name, move |backend, name| backend.set(name, &secret)).await
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), SecretError>> {
        Box::pin(self.named(name, |backend, name| backend.delete(name)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<String>, SecretError>> {
        Box::pin(async move {
            let prefix = prefix.to_owned();
            let named = move |backend: &mut B| {
                let mut names = backend.names();
                names.retain(|name| name.starts_with(&prefix));
                Ok(names)
            };
            Ok(self.call(named).await?)
        })
    }
}
