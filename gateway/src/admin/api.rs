//! What the gateway can be asked and told while it runs: every command, and what an answer is.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use futures_util::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::protocol::TopicName;

/// Everything that can be asked over the control socket: JSON like
/// `{"command": "topic_join", "topic": "cats"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The state of every part.
    Status,
    /// Our own endpoint and the neighbors in all topics.
    Peers,
    /// Whether the network lets the gateway work.
    Doctor,
    TopicList,
    TopicShow {
        name: TopicName,
    },
    TopicPeers {
        name: TopicName,
    },
    TopicCreate {
        name: TopicName,
        #[serde(default)]
        private: bool,
    },
    TopicJoin {
        topic: NameOrInvite,
    },
    TopicLeave {
        name: TopicName,
        /// Also if the topic's admin key is here: it is forgotten then.
        #[serde(default)]
        forget_admin_key: bool,
    },
    /// Makes an invite to a private topic.
    TopicInvite {
        name: TopicName,
        /// It admits one gateway and no more.
        #[serde(default)]
        once: bool,
    },
    /// Gives a private topic a new secret.
    TopicRotate {
        name: TopicName,
        /// Endpoint ids of members to leave out.
        #[serde(default)]
        exclude: Vec<String>,
        /// Seconds for which the old secret is still read; `None` for the usual time.
        #[serde(default)]
        grace_s: Option<u64>,
    },
    /// Tells the admin's key of a private topic.
    TopicExportAdmin {
        name: TopicName,
    },
    /// Makes this gateway one more of the admin's.
    TopicImportAdmin {
        key: AdminKeyText,
    },
    /// Reconciles with all neighbors now.
    TopicSync {
        name: TopicName,
    },
    /// Takes in events, as if a client had published them.
    Import {
        /// One in each line. In a body of the type `application/jsonl`, what follows the command.
        #[serde(default)]
        events: Lines,
        /// The number of the first line, for what is said of them.
        first: u64,
        /// Where they go, in place of what routing says.
        #[serde(default)]
        topics: Option<Vec<TopicName>>,
    },
    /// All that is stored, in the order in which it came.
    Export {
        /// A filter of NIP-01, as JSON.
        #[serde(default)]
        filter: Option<String>,
        /// Only what became part of this topic, in that order.
        #[serde(default)]
        topic: Option<TopicName>,
    },
    /// What is stored and matches, newest first.
    Scan {
        /// A filter of NIP-01, as JSON; its limit and its search count.
        filter: String,
        #[serde(default)]
        topic: Option<TopicName>,
        /// Only how many there are.
        #[serde(default)]
        count: bool,
    },
    /// Removes what matches, for good: no other gateway or relay brings it back.
    Delete {
        /// A filter of NIP-01, as JSON.
        filter: String,
        #[serde(default)]
        topic: Option<TopicName>,
    },
    /// Brings this gateway and a relay together, once.
    Sync {
        /// `ws://` or `wss://`.
        url: String,
        #[serde(default = "yes")]
        down: bool,
        #[serde(default)]
        up: bool,
        /// A filter of NIP-01, as JSON; all events without one.
        #[serde(default)]
        filter: Option<String>,
        /// Where events from the relay go, and whose events go to it.
        #[serde(default)]
        topic: Option<TopicName>,
        /// Only count.
        #[serde(default)]
        dry_run: bool,
    },
    /// Copies all that must be kept into a file.
    Backup {
        /// A path of the gateway's machine, absolute.
        file: PathBuf,
        /// The key of the encrypted secrets too.
        #[serde(default)]
        with_key: bool,
    },
    UpstreamList,
    UpstreamShow {
        name: String,
    },
    /// Ends a stream until it is resumed.
    UpstreamPause {
        name: String,
    },
    UpstreamResume {
        name: String,
    },
    /// Reads the configuration again.
    ConfigReload,
    PluginList,
    PluginShow {
        id: String,
    },
    /// Looks for changes of plugins and grants now, and tells what came of it.
    PluginLook {
        /// What lies in the folder with this name is complete.
        #[serde(default)]
        folder: Option<String>,
    },
    /// Forgets what a plugin that is gone remembered.
    PluginForget {
        id: String,
    },
    /// Ends a quarantine.
    PluginLift {
        id: String,
    },
}

const fn yes() -> bool {
    true
}

/// Why words do not choose what is deleted.
pub const NO_WORDS: &str =
    "the filter: `search` finds the best matches and not all; delete by \"ids\"";

/// A topic's name, or an invite, which nobody else is to see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NameOrInvite(pub String);

impl fmt::Debug for NameOrInvite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Events of others, which nobody else is to see.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lines(pub String);

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// New here, or ephemeral and passed on.
    pub added: u64,
    pub known: u64,
    pub refused: u64,
    /// Why, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// The first refusals, with the numbers of their lines.
    pub lines: Vec<(u64, String)>,
}

/// A topic's admin key as `topic export-admin` prints it, which nobody else is to see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AdminKeyText(pub String);

impl fmt::Debug for AdminKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Why a command was not carried out, and what is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The command itself.
    Wrong,
    /// What it names is not there.
    Unknown,
    /// The gateway's state or configuration.
    Refused,
    /// Something that should have worked.
    Failed,
}

/// A command that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub cause: Cause,
    /// A sentence for whoever gave the command.
    pub error: String,
}

impl Refusal {
    pub fn new(cause: Cause, error: impl ToString) -> Self {
        Self { cause, error: error.to_string() }
    }
}

/// What comes back.
pub enum Reply {
    Done(Value),
    Refused(Refusal),
    /// The command takes a while. Each line is `{"progress": …}`, the last one `{"done": …}` or
    /// `{"refused": …}`.
    Lines(BoxStream<'static, Line>),
}

/// A line of an answer that takes a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Progress(Value),
    Done(Value),
    Refused(Refusal),
}

/// Carries commands out.
pub trait Control: Send + Sync + 'static {
    fn run(self: Arc<Self>, command: Command) -> BoxFuture<'static, Reply>;
}

/// The commands that can be asked for with GET on the admin listener: those that change nothing and
/// name nothing. A web page can send requests to it.
pub fn readable(path: &str) -> Option<Command> {
    match path {
        "/status" => Some(Command::Status),
        "/peers" => Some(Command::Peers),
        "/topics" => Some(Command::TopicList),
        "/upstreams" => Some(Command::UpstreamList),
        "/plugins" => Some(Command::PluginList),
        _ => None,
    }
}

impl Refusal {
    pub(super) fn json(&self) -> Value {
        json!({ "cause": self.cause, "error": self.error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_is_documented() {
        let read = |text: &str| serde_json::from_str::<Command>(text);
        assert_eq!(read(r#"{"command":"status"}"#).unwrap(), Command::Status);
        let join = read(r#"{"command":"topic_join","topic":"cats"}"#).unwrap();
        assert_eq!(join, Command::TopicJoin { topic: NameOrInvite("cats".into()) });
        assert!(!format!("{join:?}").contains("cats"), "an invite is a secret");
        let import = read(r#"{"command":"topic_import_admin","key":"a secret"}"#).unwrap();
        assert!(!format!("{import:?}").contains("secret"));
        let name = TopicName::new("cats").unwrap();
        let leave = read(r#"{"command":"topic_leave","name":"cats"}"#).unwrap();
        assert_eq!(leave, Command::TopicLeave { name: name.clone(), forget_admin_key: false });
        let rotate = read(r#"{"command":"topic_rotate","name":"cats"}"#).unwrap();
        assert_eq!(rotate, Command::TopicRotate { name, exclude: Vec::new(), grace_s: None });
        for wrong in [
            "",
            "{}",
            r#"{"command":"stop"}"#,
            r#"{"command":"topic_leave"}"#,
            r#"{"command":"topic_leave","name":""}"#,
            r#"{"command":"topic_leave","name":"a","force":true}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_web_page_can_send_changes_nothing() {
        for path in ["/", "/control", "/topics/join", "/topic_join"] {
            assert_eq!(readable(path), None, "{path}");
        }
    }
}
