//! Carries out what the control API is asked, with the parts that `app` wired together.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{reload::Reload, tools::Tools};
use crate::{
    admin::api::{AdminKeyText, Cause, Command, Control, Line, NameOrInvite, Refusal, Reply},
    gossip::{
        Gossip, Joining, PeerStatus, TopicError,
        check::{Check, KEYRING, Verdict},
        config::{DiscoveryConfig, EndpointConfig},
    },
    pipeline::{HowJoined, SecretStore},
    plugins::PluginChain,
    protocol::{
        TopicName,
        private::{admin_key::AdminKey, invite::Joinable},
    },
    secrets,
    store::Store,
    tasks,
    upstream::{StreamError, Streams},
};

/// What the commands work on.
pub(super) struct Commands {
    pub started: Instant,
    pub data_dir: PathBuf,
    /// Where clients on this machine find the relay, and under which URL others do, if it has one.
    pub relay: String,
    pub relay_url: String,
    pub admin: Option<String>,
    pub endpoint: EndpointConfig,
    pub discovery: DiscoveryConfig,
    pub store: Arc<Store>,
    pub tools: Tools,
    pub gossip: Arc<Gossip>,
    pub streams: Arc<Streams>,
    pub reload: Arc<Reload>,
    pub plugins: Arc<PluginChain>,
    /// What keeps the gateway from its work at the moment.
    pub trouble: Box<dyn Fn() -> Option<&'static str> + Send + Sync>,
    pub secrets: Arc<dyn SecretStore>,
    pub counted: tokio::sync::Mutex<Option<Counted>>,
}

/// How many events there were, and what it took to count them.
pub(super) struct Counted {
    events: u64,
    at: Instant,
    took: Duration,
}

/// Counting may take one part in so many of the time: any web page can ask for the status, as often
/// as it likes.
const COUNTING: u32 = 20;

impl Control for Commands {
    fn run(self: Arc<Self>, command: Command) -> BoxFuture<'static, Reply> {
        async move { self.carry_out(command).await.unwrap_or_else(Reply::Refused) }.boxed()
    }
}

impl Commands {
    async fn carry_out(&self, command: Command) -> Result<Reply, Refusal> {
        let membership = self.gossip.membership();
        let done = match command {
            Command::Status => self.status().await?,
            Command::Peers => self.peers(),
            Command::Doctor => {
                let network = self.gossip.check(&self.endpoint, &self.discovery);
                let (mut checks, secrets) = tokio::join!(network, self.check_secrets());
                checks.push(secrets);
                json!({ "checks": checks })
            }
            Command::TopicList => json!({ "topics": self.gossip.status() }),
            Command::TopicShow { name } => {
                let mut shown = self.topic(&name)?;
                if let Some(private) = membership.private_status(&name) {
                    shown["private"] = json!(private);
                }
                shown
            }
            Command::TopicPeers { name } => {
                self.topic(&name)?;
                json!({ "name": name, "peers": self.peers_in(&name) })
            }
            Command::TopicCreate { name, private: true } => {
                membership.create_private(name.clone()).await.map_err(refusal)?;
                json!({ "name": name, "already": false, "url": self.topic_url(&name) })
            }
            Command::TopicCreate { name, private: false } => self.join(name).await?,
            // Whatever may have been meant as an invite is not repeated.
            Command::TopicJoin { topic: NameOrInvite(text) } => match Joinable::parse(&text) {
                Ok(Joinable::Name(name)) => self.join(name).await?,
                Ok(Joinable::Invite(invite)) => {
                    let name = invite.topic.name.clone();
                    let joining = membership.accept(invite).await.map_err(refusal)?;
                    let already = joining == Joining::Already;
                    json!({ "name": name, "already": already, "url": self.topic_url(&name) })
                }
                Err(error) => return Err(Refusal::new(Cause::Wrong, error)),
            },
            Command::TopicLeave { name, forget_admin_key } => {
                membership.leave(&name, forget_admin_key).await.map_err(refusal)?;
                json!({ "name": name })
            }
            Command::TopicInvite { name, once } => {
                self.topic(&name)?;
                let invite = membership.invite(&name, once).await.map_err(refusal)?;
                json!({ "name": name, "invite": invite })
            }
            Command::TopicRotate { name, exclude, grace_s } => {
                self.topic(&name)?;
                membership.rotate(&name, &exclude, grace_s).await.map_err(refusal)?;
                json!({ "name": name })
            }
            Command::TopicExportAdmin { name } => {
                let key = membership.export_admin(&name).map_err(refusal)?;
                json!({ "name": name, "admin_key": *key })
            }
            Command::TopicImportAdmin { key: AdminKeyText(text) } => {
                let key = AdminKey::parse(&text);
                let key = key.map_err(|error| Refusal::new(Cause::Wrong, error))?;
                let name = key.name.clone();
                let already = membership.import_admin(key).await.map_err(refusal)?;
                json!({ "name": name, "already": already == Joining::Already })
            }
            Command::TopicSync { name } => return self.sync(&name),
            Command::Import { .. }
            | Command::Export { .. }
            | Command::Scan { .. }
            | Command::Delete { .. }
            | Command::Backup { .. }
            | Command::Sync { .. } => return self.tools.carry_out(command).await,
            Command::UpstreamList => json!({ "upstreams": self.streams.status() }),
            Command::UpstreamShow { name } => self.stream(&name).await?,
            Command::UpstreamPause { name } => {
                let was_paused = self.streams.pause(&name).await.map_err(stream_refusal)?;
                json!({ "name": name, "was_paused": was_paused })
            }
            Command::UpstreamResume { name } => {
                let was_paused = self.streams.resume(&name).await.map_err(stream_refusal)?;
                json!({ "name": name, "was_paused": was_paused })
            }
            Command::ConfigReload => match self.reload.reload().await {
                Ok(reloaded) => json!(reloaded),
                Err(errors) => return Err(Refusal::new(Cause::Refused, errors.join("\n"))),
            },
            Command::PluginList => self.plugins(),
            Command::PluginShow { id } => self.plugin(id).await?,
            Command::PluginLook { folder } => {
                let plugins = self.plugins.clone();
                let looked = tasks::blocking(move || plugins.look(folder)).await;
                if !looked.unwrap_or_default() {
                    let why = "the gateway does not watch its plugins; restart it";
                    return Err(Refusal::new(Cause::Failed, why));
                }
                self.plugins()
            }
            Command::PluginForget { id } => {
                let (plugins, name) = (self.plugins.clone(), id.clone());
                let forgotten = tasks::blocking(move || plugins.forget(&name)).await;
                let failed = |error: String| Refusal::new(Cause::Failed, error);
                forgotten
                    .map_err(|error| failed(error.to_string()))?
                    .map_err(|error| failed(error.to_string()))?;
                json!({ "id": id })
            }
            Command::PluginLift { id } => match self.plugins.lift(&id) {
                Some(lifted) => json!({ "id": id, "lifted": lifted }),
                None => return Err(self.no_plugin(&id)),
            },
        };
        Ok(Reply::Done(done))
    }

    fn sync(&self, name: &TopicName) -> Result<Reply, Refusal> {
        self.topic(name)?;
        let progress = self.gossip.membership().sync(name).map_err(refusal)?;
        Ok(steps(name.clone(), progress))
    }

    async fn join(&self, name: TopicName) -> Result<Value, Refusal> {
        let joining = self.gossip.membership().join(name.clone(), HowJoined::Command).await;
        let already = joining.map_err(refusal)? == Joining::Already;
        Ok(json!({ "name": name, "already": already, "url": self.topic_url(&name) }))
    }

    async fn status(&self) -> Result<Value, Refusal> {
        let events = self.events().await?;
        Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "trouble": (self.trouble)().map(str::trim_end),
            "data_dir": self.data_dir.display().to_string(),
            "relay": self.relay,
            "relay_url": self.relay_url,
            "admin": self.admin,
            "store": { "events": events, "bytes": self.store.bytes() },
            "endpoint": self.gossip.endpoint_id().to_string(),
            "addresses": self.gossip.addresses(),
            "iroh_relays": self.gossip.iroh_relays(),
            "topics": self.gossip.status(),
            "upstreams": self.streams.status(),
            "config": self.reload.state(),
            "plugins": self.plugins.summary(),
            "secrets": self.secrets.rests_in().as_str(),
        }))
    }

    /// Whether secrets can still be kept where they rest: a keyring may have been locked meanwhile.
    async fn check_secrets(&self) -> Check {
        let place = self.secrets.rests_in().as_str();
        match secrets::probe_open(&*self.secrets).await {
            Ok(()) => {
                let found = format!("secrets rest in: {place}; it gave back what was put in");
                Check::new(KEYRING, Verdict::Ok, found)
            }
            Err(error) => Check::new(KEYRING, Verdict::Failed, error.to_string()).advise(
                "the gateway goes on with what it has read, and cannot keep new secrets: unlock the \
                 keyring or start its service, or see to the file that is named",
            ),
        }
    }

    async fn events(&self) -> Result<u64, Refusal> {
        let mut last = self.counted.lock().await;
        if let Some(last) = &*last
            && last.at.elapsed() < last.took * COUNTING
        {
            return Ok(last.events);
        }
        let began = Instant::now();
        let events = self.store.count_events().await;
        let events = events.map_err(|error| Refusal::new(Cause::Failed, error))?;
        *last = Some(Counted { events, at: Instant::now(), took: began.elapsed() });
        Ok(events)
    }

    fn plugins(&self) -> Value {
        json!({ "dir": self.plugins.dir(), "plugins": self.plugins.summary() })
    }

    /// All that is known of one stream.
    async fn stream(&self, name: &str) -> Result<Value, Refusal> {
        let unknown = || stream_refusal(StreamError::Unknown(name.to_owned()));
        let (config, report) = self.streams.show(name).ok_or_else(unknown)?;
        let dropped = self.streams.dropped(name).await;
        let dropped = dropped.map_err(|error| Refusal::new(Cause::Failed, error))?;
        let dropped: Vec<Value> = dropped
            .into_iter()
            .map(|event| {
                json!({
                    "url": event.url,
                    "id": event.id.to_string(),
                    "at": event.at,
                    "reason": event.reason,
                })
            })
            .collect();
        let mut shown = json!(report);
        shown["config"] = json!(*config);
        shown["dropped"] = json!(dropped);
        Ok(shown)
    }

    /// All that is known of one plugin.
    async fn plugin(&self, id: String) -> Result<Value, Refusal> {
        let (plugins, data_dir) = (self.plugins.clone(), self.data_dir.clone());
        let described = tasks::blocking(move || plugins.describe(&id, &data_dir).ok_or(id)).await;
        let described = described.map_err(|error| Refusal::new(Cause::Failed, error))?;
        described.map_err(|id| self.no_plugin(&id))
    }

    fn no_plugin(&self, id: &str) -> Refusal {
        let dir = self.plugins.dir().display();
        Refusal::new(Cause::Unknown, format!("there is no plugin {id} in {dir}"))
    }

    fn peers(&self) -> Value {
        json!({
            "endpoint": self.gossip.endpoint_id().to_string(),
            "addresses": self.gossip.addresses(),
            "iroh_relays": self.gossip.iroh_relays(),
            "peers": self.gossip.peers(),
        })
    }

    fn peers_in(&self, name: &TopicName) -> Vec<PeerStatus> {
        let peers = self.gossip.peers().into_iter();
        peers.filter(|peer| peer.topics.contains_key(name)).collect()
    }

    fn topic(&self, name: &TopicName) -> Result<Value, Refusal> {
        let topic = self.gossip.topic(name);
        let topic = topic.ok_or_else(|| refusal(TopicError::NotJoined(name.clone())))?;
        Ok(json!({
            "topic": topic,
            "url": self.topic_url(name),
            "peers": self.peers_in(name),
        }))
    }

    /// Where the topic is to be found on this machine.
    fn topic_url(&self, name: &TopicName) -> String {
        use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
        const ESCAPED: &percent_encoding::AsciiSet =
            &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        format!("{}/topic/{}", self.relay, utf8_percent_encode(name.as_str(), ESCAPED))
    }
}

/// Tells each state that is seen, and the last one as the result.
fn steps<T>(name: TopicName, progress: watch::Receiver<T>) -> Reply
where
    T: Clone + Serialize + Send + Sync + 'static,
{
    let lines = stream::unfold(Some((progress, true)), move |state| {
        let name = name.clone();
        async move {
            let (mut progress, is_first) = state?;
            let goes_on = is_first || progress.changed().await.is_ok();
            let now = progress.borrow_and_update().clone();
            match goes_on {
                true => Some((Line::Progress(json!(now)), Some((progress, false)))),
                false => Some((Line::Done(json!({ "name": name, "result": now })), None)),
            }
        }
    });
    Reply::Lines(lines.boxed())
}

fn stream_refusal(error: StreamError) -> Refusal {
    let cause = match &error {
        StreamError::Unknown(_) => Cause::Unknown,
        StreamError::Store(_) => Cause::Failed,
    };
    Refusal::new(cause, error)
}

fn refusal(error: TopicError) -> Refusal {
    let cause = match &error {
        TopicError::NotJoined(_) => Cause::Unknown,
        TopicError::Invite | TopicError::Endpoint(_) => Cause::Wrong,
        TopicError::Store(_) | TopicError::Secrets(_) | TopicError::SecretStays(_) => Cause::Failed,
        TopicError::Configured(_)
        | TopicError::Private(_)
        | TopicError::NotPrivate(_)
        | TopicError::NameTaken(_)
        | TopicError::NameUsed(_)
        | TopicError::NotAdmitted
        | TopicError::Refused(_)
        | TopicError::TooMany
        | TopicError::TooManyVisits
        | TopicError::NotForVisits(_)
        | TopicError::CannotSync(_)
        | TopicError::LeftByCommand(_)
        | TopicError::AdminKeyHere
        | TopicError::SecretHere
        | TopicError::SecretAway
        | TopicError::AdminKeyOfBefore(_)
        | TopicError::Left
        | TopicError::Stopping => Cause::Refused,
    };
    Refusal::new(cause, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_answer_in_steps_ends_with_its_result() {
        let (progress, watching) = watch::channel(1);
        let Reply::Lines(mut lines) = steps(TopicName::new("t").unwrap(), watching) else {
            panic!("lines")
        };
        assert_eq!(lines.next().await, Some(Line::Progress(json!(1))));
        progress.send_replace(2);
        assert_eq!(lines.next().await, Some(Line::Progress(json!(2))));
        progress.send_replace(3);
        drop(progress);
        assert_eq!(lines.next().await, Some(Line::Progress(json!(3))));
        let done = json!({ "name": "t", "result": 3 });
        assert_eq!(lines.next().await, Some(Line::Done(done)));
        assert_eq!(lines.next().await, None);
    }
}
