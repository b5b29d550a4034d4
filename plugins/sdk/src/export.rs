//! From an [`EventFilter`](crate::EventFilter) to what the component exports.

/// Exports a type that implements [`EventFilter`](crate::EventFilter) as the component's filter.
/// Once per crate.
///
/// It also writes the message of a panic to the gateway's log, so the manifest must list the
/// capability `log`.
#[macro_export]
macro_rules! export_event_filter {
    ($filter:ty) => {
        // Other linkers do not take the names of a component's exports. Elsewhere, in tests, it is
        // enough that the type fits.
        #[cfg(not(target_family = "wasm"))]
        const _: fn() -> Result<$filter, String> = <$filter as $crate::EventFilter>::init;

        #[cfg(target_family = "wasm")]
        const _: () = {
            use $crate::{
                __private::{Exported, FilterGuest},
                Context, Event, EventFilter, Verdict,
            };

            thread_local! {
                static FILTER: Exported<$filter> = const { Exported::new() };
            }

            struct Component;

            impl FilterGuest for Component {
                fn init() -> Result<(), String> {
                    FILTER.with(|filter| filter.init(<$filter as EventFilter>::init))
                }

                fn evaluate(event: Event, context: Context) -> Verdict {
                    FILTER.with(|filter| {
                        filter.call(|filter| EventFilter::evaluate(filter, event, context))
                    })
                }
            }

    $crate::bindings::export!(Component with_types_in $crate::bindings);
        };
    };
}

#[doc(hidden)]
pub mod __private {
    use std::cell::RefCell;

    pub use crate::{
        bindings::exports::nostr_gateway::plugin::filter::Guest as FilterGuest,
        rotation::bindings::exports::nostr_gateway::plugin::rotation::Guest as RotationGuest,
        topics::bindings::exports::nostr_gateway::plugin::routing::Guest as TopicsGuest,
    };

    /// Where the exported functions find the plugin, of whatever world.
    pub struct Exported<P>(RefCell<Option<P>>);

    impl<P> Exported<P> {
        #[expect(clippy::new_without_default, reason = "used in a constant only")]
        pub const fn new() -> Self {
            Self(RefCell::new(None))
        }

        /// Makes the plugin. From here on the message and place of a panic are logged.
        pub fn init(&self, init: impl FnOnce() -> Result<P, String>) -> Result<(), String> {
            std::panic::set_hook(Box::new(|info| crate::log::error(&info.to_string())));
            *self.0.borrow_mut() = Some(init()?);
            Ok(())
        }

        pub fn call<T>(&self, call: impl FnOnce(&mut P) -> T) -> T {
            call(self.0.borrow_mut().as_mut().expect("the host calls init first"))
        }
    }
}
