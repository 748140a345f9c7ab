//! Messages for an operator, by `defmt`.

/// Logs by defmt at `level`, if the crate that it is used in has the feature `defmt` on. With it off it is nothing: the values are not
/// even evaluated.
///
/// | level | for |
/// |---|---|
/// | `error` | data may be lost, or the storage breaks its contract: the latch, a completion of nothing |
/// | `warn` | a guest's disk has stopped working: an operation failed, a queue is broken |
/// | `info` | what happens seldom: resets |
/// | `debug` | what a guest may cause as often as it likes: requests that are refused |
///
/// defmt compiles in the levels that `DEFMT_LOG` names, `error` if it is not set: `DEFMT_LOG=info cargo build`.
#[macro_export]
macro_rules! log {
    ($level:ident, $message:literal $(, $value:expr)* $(,)?) => {{
        #[cfg(feature = "defmt")]
        ::defmt::$level!($message $(, $value)*);
        #[cfg(not(feature = "defmt"))]
        {
            if false {
                $(let _ = &$value;)*
            }
        }
    }};
}
