//! Where images are made unless the user says where.

use std::path::{Path, PathBuf};

/// As TMPDIR says. Without it /var/tmp, as /tmp is often a tmpfs, where nothing is durable.
pub(crate) fn directory() -> PathBuf {
    let durable = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && durable.is_dir() {
        return durable.to_owned();
    }
    std::env::temp_dir()
}
