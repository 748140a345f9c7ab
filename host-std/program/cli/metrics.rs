//! The arguments of `metrics`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

const EXAMPLES: &str = "\
Examples:
  blk-host metrics --control /run/blk/control --listen 127.0.0.1:9185
  curl http://127.0.0.1:9185/metrics
  blk-host ctl --control /run/blk/control metrics > /var/lib/node_exporter/blk-host.prom
                                           the same once, for a textfile collector";

/// Export what servers count, for Prometheus: answers GET /metrics in OpenMetrics text.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MetricsArgs {
    /// A server's control socket (may be given several times). One that does not answer within a second is reported as down.
    #[arg(long = "control", value_name = "PATH", required = true)]
    pub(crate) controls: Vec<PathBuf>,

    /// Where to listen: a loopback address such as 127.0.0.1:9185, or a unix socket, unix:PATH, for its owner alone.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: ListenArg,
}

/// Where nobody listens from outside the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListenArg {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for ListenArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const REMEDY: &str = "give 127.0.0.1:PORT, [::1]:PORT or unix:PATH";
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err(format!("the path is missing; {REMEDY}")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let address: SocketAddr =
            text.parse().map_err(|_| format!("not an address with a port; {REMEDY}"))?;
        if !address.ip().is_loopback() {
            return Err(format!("others than this machine could ask there; {REMEDY}"));
        }
        Ok(Self::Tcp(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_listened_to() {
        for text in ["127.0.0.1:9185", "127.1.2.3:1", "[::1]:9185"] {
            assert_eq!(text.parse(), Ok(ListenArg::Tcp(text.parse().unwrap())));
        }
        assert_eq!("unix:a:b".parse(), Ok(ListenArg::Unix("a:b".into())));
        for text in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "127.0.0.1", "localhost:1", "9185", "unix:", ""] {
            let error = text.parse::<ListenArg>().unwrap_err();
            assert!(error.contains("unix:PATH"), "{text}: {error}");
        }
    }
}
