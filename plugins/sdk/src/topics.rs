//! Topic policies: which topics an event goes to, and which may be joined because somebody visits
//! them.

use crate::{Context, Event};

#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "topic-policy",
        additional_derives: [Clone, PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_topics",
        default_bindings_module: "nostr_gateway_plugin::topics::bindings",
        with: {
            "nostr-gateway:plugin/types@0.1.0": crate::bindings::nostr_gateway::plugin::types,
            "nostr-gateway:plugin/log@0.1.0": crate::bindings::nostr_gateway::plugin::log,
            "nostr-gateway:plugin/config@0.1.0": crate::bindings::nostr_gateway::plugin::config,
            "nostr-gateway:plugin/clock@0.1.0": crate::bindings::nostr_gateway::plugin::clock,
            "nostr-gateway:plugin/kv@0.1.0": crate::bindings::nostr_gateway::plugin::kv,
            "nostr-gateway:plugin/lookup@0.1.0": crate::bindings::nostr_gateway::plugin::lookup,
        },
    });
}

/// A topic policy.
pub trait TopicPolicy: Sized + 'static {
    /// Reads the configuration and gets ready.
    ///
    /// # Errors
    /// The text tells the operator what is wrong. The plugin then does not run.
    fn init() -> Result<Self, String>;

    /// The topics for an event; `None` leaves that to others. Memory kept between calls is a cache.
    fn topics(&mut self, event: Event, context: Context) -> Option<Vec<String>>;

    /// Whether a topic may be joined because somebody comes to its URL.
    fn may_visit(&mut self, topic: String) -> bool;
}

/// Exports a type that implements [`TopicPolicy`] as the component's policy. Once per crate.
///
/// It also writes the message of a panic to the gateway's log, so the manifest must list the
/// capability `log`.
#[macro_export]
macro_rules! export_topic_policy {
    ($policy:ty) => {
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> Result<$policy, String> = <$policy as $crate::topics::TopicPolicy>::init;

        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::{
                __private::{Exported, TopicsGuest},
                Context, Event,
                topics::TopicPolicy,
            };

            thread_local! {
                static POLICY: Exported<$policy> = const { Exported::new() };
            }

            struct Component;

            impl TopicsGuest for Component {
                fn init() -> Result<(), String> {
                    POLICY.with(|policy| policy.init(<$policy as TopicPolicy>::init))
                }

                fn topics(event: Event, context: Context) -> Option<Vec<String>> {
                    POLICY.with(|policy| policy.call(|policy| policy.topics(event, context)))
                }

                fn may_visit(topic: String) -> bool {
                    POLICY.with(|policy| policy.call(|policy| policy.may_visit(topic)))
                }
            }

            $crate::topics::bindings::export_topics!(Component with_types_in $crate::topics::bindings);
        };
    };
}
