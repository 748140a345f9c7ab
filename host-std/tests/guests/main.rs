//! Real guests on our disks, over vhost-user and over vfio-user: User-Mode Linux, QEMU 7.2 and QEMU 11 boot with them, use them, and
//! lose power.
//!
//! `cargo test -p host-std --features guests --test guests` fetches what the guests are made of, once, and says so. With
//! `BLK_HOST_GUESTS=full` each cell of the matrix that has a cache is checked in 1,000 crash states, a GiB is compared, and the
//! server is killed 50 times. `BLK_HOST_CACHE` is the folder for what is fetched. With `BLK_HOST_CLOUD_HYPERVISOR`, the path of a
//! cloud-hypervisor, its guests are tried too.
//!
//! Two tests run at a time, as many as there are processors: `--test-threads` changes that.
#![cfg(feature = "guests")]

mod ata;
mod attach;
mod cache;
mod crash;
mod demo;
mod drivers;
mod durable;
mod faults;
mod firmware;
mod guest;
mod machine;
mod matrix;
mod mutants;
mod probe;
mod server;
mod workload;

/// Whether everything is to be tried, which takes hours.
pub(crate) fn full() -> bool {
    std::env::var("BLK_HOST_GUESTS").is_ok_and(|value| value == "full")
}

/// Prints a line at once, also where the test's output is kept until it fails: progress.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "guests: {}", format_args!($($arg)*));
    }};
}
pub(crate) use say;
