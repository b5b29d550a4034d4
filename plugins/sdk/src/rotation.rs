//! Rotation policies: when a private topic gets a new secret, and who is left out.

#[doc(hidden)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "secret-rotation",
        additional_derives: [Clone, PartialEq],
        pub_export_macro: true,
        export_macro_name: "export_rotation",
        default_bindings_module: "nostr_gateway_plugin::rotation::bindings",
        with: {
            "nostr-gateway:plugin/log@0.1.0": crate::bindings::nostr_gateway::plugin::log,
            "nostr-gateway:plugin/config@0.1.0": crate::bindings::nostr_gateway::plugin::config,
        },
    });
}

#[doc(inline)]
pub use bindings::exports::nostr_gateway::plugin::rotation::{Decision, Member, Plan, Topic};

/// A rotation policy.
pub trait SecretRotation: Sized + 'static {
    /// Reads the configuration and gets ready.
    ///
    /// # Errors
    /// The text tells the operator what is wrong. The plugin then does not run.
    fn init() -> Result<Self, String>;

    /// Decides about one topic. Memory kept between calls is a cache.
    fn decide(&mut self, topic: Topic) -> Decision;
}

/// Exports a type that implements [`SecretRotation`] as the component's policy. Once per crate.
///
/// It also writes the message of a panic to the gateway's log, so the manifest must list the
/// capability `log`.
#[macro_export]
macro_rules! export_secret_rotation {
    ($policy:ty) => {
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> Result<$policy, String> =
            <$policy as $crate::rotation::SecretRotation>::init;

        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::rotation::{
                __private::{Exported, Guest},
                Decision, Topic,
            };

            thread_local! {
                static POLICY: Exported<$policy> = const { Exported::new() };
            }

            struct Component;

            impl Guest for Component {
                fn init() -> Result<(), String> {
                    POLICY.with(Exported::init)
                }

                fn decide(topic: Topic) -> Decision {
                    POLICY.with(|policy| policy.decide(topic))
                }
            }

            $crate::rotation::bindings::export_rotation!(Component with_types_in $crate::rotation::bindings);
        };
    };
}

#[doc(hidden)]
pub mod __private {
    use std::cell::RefCell;

    pub use super::bindings::exports::nostr_gateway::plugin::rotation::Guest;
    use super::{Decision, SecretRotation, Topic};

    /// Where the exported functions find the policy.
    pub struct Exported<P>(RefCell<Option<P>>);

    impl<P: SecretRotation> Exported<P> {
        #[expect(clippy::new_without_default, reason = "used in a constant only")]
        pub const fn new() -> Self {
            Self(RefCell::new(None))
        }

        pub fn init(&self) -> Result<(), String> {
            std::panic::set_hook(Box::new(|info| crate::log::error(&info.to_string())));
            *self.0.borrow_mut() = Some(P::init()?);
            Ok(())
        }

        pub fn decide(&self, topic: Topic) -> Decision {
            let mut policy = self.0.borrow_mut();
            policy.as_mut().expect("the host calls init first").decide(topic)
        }
    }
}
