use std::path::Path;

use super::*;

const FILE: &str = r#"
control = "/run/control"
log-format = "json"

[[device]]
type = "virtio-scsi"
socket = "/run/host"
queues = 4

[[device.image]]
path = "a.img"
cache = "none"
engine = "threads"
rerror = "stop"
size = "10G"
iops = 500
bps = "10M"
bps-burst = 4096

[[device.image]]
path = "b.img"
lun = "1:7"
readonly = true

[[device]]
name = "root"
type = "virtio-blk"
fd = 5
once = true
image = [{ path = "c.img", werror = "report", serial = "S 1", logical-block = 4096 }]
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("disks.toml"))
}

fn error(text: &str) -> String {
    parse(text).expect_err("refused").to_string()
}

#[test]
fn a_file_means_what_it_says_and_survives_a_round_trip() {
    let config = parse(FILE).unwrap();
    let [host, root] = config.devices.as_slice() else { panic!("two devices") };
    assert_eq!(
        (host.name(0), host.kind, host.queues, host.once),
        ("disk0".into(), DeviceKind::VirtioScsi, 4, false)
    );
    let [a, b] = host.images.as_slice() else { panic!("two images") };
    assert_eq!(
        (a.cache, a.engine, a.rerror, a.werror),
        (CacheMode::None, IoEngine::Threads, OnError::Stop, OnError::Enospc)
    );
    assert_eq!(
        (a.size, a.address(0), b.address(1)),
        (Some(Size(10 << 30)), "0:0".parse().unwrap(), "1:7".parse().unwrap())
    );
    assert_eq!((a.iops, a.bps, a.bps_burst), (Some(500), Some(Size(10 << 20)), Some(Size(4096))));
    assert!(b.readonly && !a.readonly);
    assert_eq!((root.name(1), root.fd, root.once), ("root".into(), Some(5), true));
    assert_eq!(root.images[0].logical_block, Some(4096));
    let again = parse(&toml::to_string(&config).unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_line() {
    let error = error("[[device]]\ntype = \"virtio-blk\"\nsocket = \"s\"\nimgae = []\n");
    assert!(error.starts_with("disks.toml:4:1: there is no key imgae; did you mean image?"), "{error}");
}

#[test]
fn a_value_that_cannot_be_is_refused_with_what_can_be() {
    let image = |option: &str| {
        error(&format!(
            "[[device]]\ntype = \"virtio-blk\"\nsocket = \"s\"\n[[device.image]]\npath = \"a.img\"\n{option}\n"
        ))
    };
    for (option, named, remedy) in [
        ("cache = \"fast\"", "disks.toml:6", "writethrough"),
        ("engine = \"aio\"", "disks.toml:6", "uring"),
        ("werror = \"ignore\"", "disks.toml:6:10: there is no ignore", "report, stop, enospc"),
        ("size = \"ten\"", "disks.toml:6:8: \"ten\" is not possible", "10G"),
        ("workers = 0", "workers=0", "from 1 to 64"),
        ("workers = -1", "disks.toml:6:11", "from 0 to 65535"),
        ("workers = 1.5", "1.5", "whole number"),
        ("logical-block = 1000", "logical-block=1000", "power of two"),
        ("readonly = \"yes\"", "disks.toml:6:12", "true or false"),
        ("cahce = \"none\"", "no key cahce", "did you mean cache?"),
        ("serial = S", "disks.toml:6:10", "in quotes"),
        ("lun = \"0:1\"", "lun with virtio-blk", "virtio-scsi"),
        ("serial = \"123456789012345678901\"", "serial", "at most 20"),
        ("iops-burst = 5", "iops-burst without iops", "give iops"),
        ("bps = \"fast\"", "disks.toml:6", "10G"),
        ("readonly = true\nrecord = \"log\"", "readonly with size or record", "leave readonly out"),
    ] {
        let error = image(option);
        assert!(error.contains(named) && error.contains(remedy), "{option}: {error}");
    }
}

#[test]
fn devices_that_would_clash_are_refused() {
    let blk = |more: &str, path: &str| {
        format!("[[device]]\ntype = \"virtio-blk\"\n{more}\nimage = [{{ path = \"{path}\" }}]\n")
    };
    for (text, named) in [
        (String::new(), "no device"),
        ("[[device]]\ntype = \"virtio-blk\"\nsocket = \"s\"\n".into(), "no image"),
        (blk("socket = \"s\"\nfd = 3", "a"), "both a socket and an fd"),
        (blk("socket = \"s\"\nqueues = 0", "a"), "queues=0"),
        (blk("socket = \"s\"\nqueue-size = 100", "a"), "queue-size=100"),
        (blk("socket = \"s\"", "a") + &blk("socket = \"s\"", "b"), "s is used twice"),
        (
            blk("name = \"x\"\nsocket = \"s\"", "a") + &blk("name = \"x\"\nsocket = \"t\"", "b"),
            "the name is used twice",
        ),
        (format!("control = \"s\"\n{}", blk("socket = \"s\"", "a")), "s is used twice"),
    ] {
        let error = error(&text);
        assert!(error.starts_with("disks.toml") && error.contains(named), "{named}: {error}");
    }
    let luns = "[[device]]\ntype = \"virtio-scsi\"\nsocket = \"s\"\nimage = [{ path = \"a\", lun = \"0:1\" }, { path = \"b\" }]\n";
    assert!(error(luns).contains("lun 0:1 is used twice"));
}
