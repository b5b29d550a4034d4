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
                Context, Event,
                topics::__private::{Exported, Guest},
            };

            thread_local! {
                static POLICY: Exported<$policy> = const { Exported::new() };
            }

            struct Component;

            impl Guest for Component {
                fn init() -> Result<(), String> {
                    POLICY.with(Exported::init)
                }

                fn topics(event: Event, context: Context) -> Option<Vec<String>> {
                    POLICY.with(|policy| policy.topics(event, context))
                }

                fn may_visit(topic: String) -> bool {
                    POLICY.with(|policy| policy.may_visit(topic))
                }
            }

            $crate::topics::bindings::export_topics!(Component with_types_in $crate::topics::bindings);
        };
    };
}

#[doc(hidden)]
pub mod __private {
    use std::cell::RefCell;

    use super::TopicPolicy;
    pub use super::bindings::exports::nostr_gateway::plugin::routing::Guest;
    use crate::{Context, Event};

    /// Where the exported functions find the policy.
    pub struct Exported<P>(RefCell<Option<P>>);

    impl<P: TopicPolicy> Exported<P> {
        #[expect(clippy::new_without_default, reason = "used in a constant only")]
        pub const fn new() -> Self {
            Self(RefCell::new(None))
        }

        pub fn init(&self) -> Result<(), String> {
            std::panic::set_hook(Box::new(|info| crate::log::error(&info.to_string())));
            *self.0.borrow_mut() = Some(P::init()?);
            Ok(())
        }

        pub fn topics(&self, event: Event, context: Context) -> Option<Vec<String>> {
            let mut policy = self.0.borrow_mut();
            policy.as_mut().expect("the host calls init first").topics(event, context)
        }

        pub fn may_visit(&self, topic: String) -> bool {
            let mut policy = self.0.borrow_mut();
            policy.as_mut().expect("the host calls init first").may_visit(topic)
        }
    }
}
