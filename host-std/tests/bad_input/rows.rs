//! The tables: what was typed, the exit status, and words of what has to be said.

/// Status, arguments between spaces (`''` is an empty one), words.
#[derive(Clone, Copy)]
pub(crate) struct Row(pub(crate) i32, pub(crate) &'static str, pub(crate) &'static [&'static str]);

/// What all commands but `serve` refuse.
pub(crate) const OTHERS: &[Row] = &[
    // The probe.
    Row(2, "probe", &["<PATH>", "add it"]),
    Row(2, "probe nofile", &["nofile: no such file", "truncate -s 10G nofile"]),
    Row(2, "probe ''", &["<PATH>", "add it"]),
    Row(2, "probe notes.txt/x", &["notes.txt/x", "give a path"]),
    Row(2, "probe pipe", &["pipe: not a disk image", "give a regular file"]),
    Row(2, "probe /dev/null", &["/dev/null: not a disk image", "give a regular file"]),
    Row(2, "probe taken", &["taken: not a disk image", "give a regular file"]),
    Row(2, "probe disk.img other.img", &["'other.img'", "--help"]),
    Row(2, "probe disk.img --jsn", &["'--jsn'", "did you mean --json?"]),
    // Recordings that are read.
    Row(2, "replay", &["<LOG>", "add it"]),
    Row(2, "replay nofile", &["nofile", "No such file", "give a recording"]),
    Row(2, "replay dir", &["dir: not a recording", "give a file that"]),
    Row(2, "replay pipe", &["pipe: not a recording", "give a file that"]),
    Row(2, "replay disk.img", &["disk.img: not a recording", "give a file that"]),
    Row(2, "replay empty.img", &["empty.img: not a recording", "give a file that"]),
    Row(2, "replay r --at 5", &["--out <IMAGE>", "add it"]),
    Row(2, "replay r --at x --out o", &["'x' for '--at <POSITION>'", "a whole number from 0"]),
    Row(2, "replay r --at -1 --out o", &["'-1' for '--at <POSITION>'", "a whole number from 0"]),
    Row(
        2,
        "replay r --state 5 --out o",
        &["'5' for '--state <POSITION:NUMBER>'", "give a position and a number"],
    ),
    Row(2, "replay r --list", &["--crash-states <N>", "add it"]),
    Row(2, "replay r --crash-states 0", &["'0' for '--crash-states <N>'", "a whole number from 1"]),
    Row(2, "replay r --crash-states many", &["'many'", "a whole number from 1"]),
    Row(2, "replay r --crash-states 5 --at 3 --out o", &["--at <POSITION>", "leave one of them out"]),
    Row(2, "replay r --per-position 0 --crash-states 4", &["'0' for '--per-position <N>'", "from 1"]),
    Row(2, "replay r --seed x", &["'x' for '--seed <SEED>'", "a whole number"]),
    // The operator's hand, without a server.
    Row(2, "ctl stats", &["--control <PATH>", "add it"]),
    Row(
        2,
        "ctl --control nofile stats",
        &["--control nofile", "No such file", "start the server with serve --control nofile"],
    ),
    Row(2, "ctl --control stale stats", &["--control stale", "Connection refused", "of a server that runs"]),
    Row(
        2,
        "ctl --control disk.img stats",
        &["--control disk.img", "give the path that serve --control was given"],
    ),
    Row(2, "ctl --control dir stats", &["--control dir", "give the path that serve --control was given"]),
    Row(
        2,
        "ctl --control taken stats",
        &["--control taken: no answer", "check that it is the control socket"],
    ),
    Row(2, "ctl --control nofile", &["subcommand", "give one of stats, metrics"]),
    Row(2, "ctl --control nofile stast", &["'stast'", "did you mean stats?"]),
    Row(2, "ctl --control nofile resize 10X", &["'10X'", "K, M, G or T"]),
    Row(2, "ctl --control nofile resize -5", &["'-5'", "10G"]),
    Row(2, "ctl --control nofile resize +", &["'+'", "10G"]),
    Row(2, "ctl --control nofile resize 1G 2G", &["'2G'", "--help"]),
    Row(2, "ctl --control nofile resize --image x 1G", &["'x' for '--image <N>'", "a whole number from 0"]),
    Row(2, "ctl --control nofile throttle iops", &["throttle iops", "iops=500"]),
    Row(2, "ctl --control nofile throttle iops=fast", &["throttle iops=fast", "give a whole number"]),
    Row(2, "ctl --control nofile throttle ops=5", &["throttle ops=5", "give iops=N"]),
    Row(2, "ctl --control nofile throttle bps=1X", &["throttle bps=1X", "K, M, G or T"]),
    Row(2, "ctl --control nofile unplug x", &["unplug x", "give target:unit"]),
    Row(2, "ctl --control nofile hotplug", &["<PATH[,OPTION...]>", "add it"]),
    Row(2, "ctl --control nofile mark", &["<TEXT>", "add it"]),
    // The table.
    Row(2, "--front floppy", &["'floppy'", "give one of ide-pio"]),
    Row(2, "--front virtio-blkk", &["'virtio-blkk'", "did you mean virtio-blk?"]),
    Row(2, "--mode sometimes", &["'sometimes'", "give one of"]),
    Row(2, "--length 0", &["'0' for '--length <N>'", "from 1 to 8"]),
    Row(2, "--length 9", &["'9' for '--length <N>'", "from 1 to 8"]),
    Row(2, "--length -1", &["'-1' for '--length <N>'", "from 1 to 8"]),
    Row(2, "--exhaustive --length 3", &["--length <N>", "leave one of them out"]),
    Row(2, "--prove-only --run-only", &["--run-only", "leave one of them out"]),
    Row(
        2,
        "--run-only --image notes.txt",
        &["--image notes.txt", "File exists", "a path that does not exist yet"],
    ),
    Row(2, "--run-only --image nodir/x", &["--image nodir/x", "No such file", "in a writable directory"]),
    Row(2, "--run-only --image dir", &["--image dir", "a path that does not exist yet"]),
    Row(2, "--jason", &["'--jason'", "did you mean --json?"]),
    Row(2, "frobnicate", &["'frobnicate'", "--help"]),
    Row(2, "serv", &["'serv'", "did you mean serve?"]),
];

/// Stands for `DEVICE` in a file.
pub(crate) const DEVICE: &str = "[[device]]\ntype = \"virtio-blk\"\nsocket = \"s\"\n";

/// Configuration files, and words.
pub(crate) const FILES: &[(&str, &[&str])] = &[
    ("DEVICEimgae = []\n", &["c.toml:4:1", "no key imgae", "did you mean image?"]),
    ("DEVICEcolour = 1\n", &["c.toml:4:1", "no key colour", "give one of name, type"]),
    ("DEVICEqueues = 70000\n", &["c.toml:4:10", "70000", "from 0 to 65535"]),
    ("DEVICEqueues = -1\n", &["c.toml:4:10", "-1", "from 0 to 65535"]),
    ("DEVICEqueues = \"4\"\n", &["c.toml:4:10", "4", "a whole number"]),
    ("DEVICEqueues = 1.5\n", &["c.toml:4:10", "1.5", "a whole number"]),
    ("DEVICEonce = \"yes\"\n", &["c.toml:4:8", "yes", "give true or false"]),
    ("DEVICEimage = \"disk.img\"\n", &["c.toml:4:9", "disk.img", "give a list"]),
    ("DEVICEimage = [\"disk.img\"]\n", &["c.toml:4:10", "disk.img", "the options of an image", "path ="]),
    ("DEVICEimage = [{ cache = \"none\" }]\n", &["c.toml:4:10", "path is missing", "add path = "]),
    ("[[device]]\nsocket = \"s\"\n", &["c.toml:1:1", "type is missing", "add type = "]),
    ("[[device]]\ntype = \"virtio-blck\"\n", &["c.toml:2:8", "virtio-blck", "did you mean virtio-blk?"]),
    ("[device]\ntype = \"virtio-blk\"\n", &["c.toml:1:1", "give a list, such as [[device]]"]),
    ("[[device]]\nsocket = s\n", &["c.toml:2:10", "quoted", "in quotes"]),
    ("[[device]\n", &["c.toml:1:", "unclosed array table", "give ]"]),
    ("DEVICEsocket = \"t\"\n", &["c.toml:4:1", "duplicate key: socket", "correct this line"]),
    ("DEVICE= 5\n", &["c.toml:4:1"]),
    (
        "DEVICEfd = 3\nimage = [{ path = \"disk.img\" }]\n",
        &["c.toml: both a socket and an fd", "give one of them"],
    ),
    ("[[device]]\ntype = \"virtio-blk\"\nsocket = 5\n", &["c.toml:3:10", "5", "a text in quotes"]),
    (
        "[[device]]\ntype = \"virtio-blk\"\nsocket = \"\"\nimage = [{ path = \"disk.img\" }]\n",
        &["socket: is empty", "give a path"],
    ),
    ("DEVICEname = \"\"\nimage = [{ path = \"disk.img\" }]\n", &["name: is empty", "leave it out"]),
    (
        "DEVICEqueue-size = 100\nimage = [{ path = \"disk.img\" }]\n",
        &["queue-size=100", "a power of two from 2 to 1024"],
    ),
    ("DEVICEimage = [{ path = \"\" }]\n", &["no file name", "path = "]),
    ("DEVICEimage = [{ path = \"nofile.img\" }]\n", &["nofile.img", "size"]),
    (
        "DEVICEimage = [{ path = \"disk.img\", size = \"10X\" }]\n",
        &["c.toml:4:38", "\"10X\"", "K, M, G or T"],
    ),
    ("DEVICEimage = [{ path = \"disk.img\", size = -1 }]\n", &["c.toml:4:38", "-1", "such as \"10G\""]),
    ("DEVICEimage = [{ path = \"disk.img\", size = true }]\n", &["c.toml:4:38", "true", "such as \"10G\""]),
    (
        "DEVICEimage = [{ path = \"disk.img\", cache = \"fast\" }]\n",
        &["c.toml:4:39", "\"fast\"", "give writeback, none"],
    ),
    (
        "DEVICEimage = [{ path = \"disk.img\", werror = \"ignore\" }]\n",
        &["c.toml:4:", "ignore", "report, stop, enospc"],
    ),
    ("DEVICEimage = [{ path = \"disk.img\", lun = \"x\" }]\n", &["c.toml:4:", "\"x\"", "give target:unit"]),
    ("DEVICEimage = [{ path = \"disk.img\", workers = 0 }]\n", &["workers=0", "from 1 to 64"]),
    (
        "DEVICEimage = [{ path = \"disk.img\", logical-block = 1000 }]\n",
        &["logical-block=1000", "from 512 to 65536"],
    ),
    ("DEVICEimage = [{ path = \"disk.img\", read-only = true }]\n", &["did you mean readonly?"]),
    ("user = 5\nDEVICE", &["c.toml:1:8", "5", "a text in quotes"]),
    (
        "user = \"nosuchuser\"\nDEVICEimage = [{ path = \"disk.img\" }]\n",
        &["user nosuchuser", "name or number of a user"],
    ),
    ("socket-mode = 660\nDEVICE", &["c.toml:1:15", "660", "a text in quotes"]),
    ("sandbox = \"on\"\nDEVICE", &["c.toml:1:11", "on", "off, auto, require"]),
    ("sandbox = true\nDEVICE", &["c.toml:1:11", "true", "a text in quotes"]),
    ("log-format = \"xml\"\nDEVICE", &["c.toml:1:14", "xml", "text, json"]),
    (
        "DEVICEimage = [{ path = \"disk.img\" }]\nDEVICEimage = [{ path = \"other.img\" }]\n",
        &["c.toml: device disk1", "s is used twice", "its own path"],
    ),
    (
        "DEVICEimage = [{ path = \"disk.img\" }]\n[[device]]\ntype = \"virtio-blk\"\nsocket = \"t\"\nimage = [{ path = \"link.img\" }]\n",
        &["c.toml: image link.img", "is the same file as image disk.img", "give each its own"],
    ),
    (
        "control = \"s\"\nDEVICEimage = [{ path = \"disk.img\" }]\n",
        &["c.toml", "s is used twice", "its own path"],
    ),
];

/// What a server refuses that serves `disk.img` behind a virtio-scsi host.
pub(crate) const CONTROL: &[Row] = &[
    Row(1, "ctl --control ctl --device nope stats", &["name one of the devices: disk0"]),
    Row(1, "ctl --control ctl resize 4K", &["disk.img", "1048576 bytes", "truncate -s 4096 disk.img"]),
    Row(1, "ctl --control ctl resize +100", &["disk.img", "1048676 bytes", "512"]),
    Row(1, "ctl --control ctl resize --image 9 2M", &["no image 9", "there are 1, from 0 on"]),
    Row(1, "ctl --control ctl resize --image 9 +2M", &["no image 9", "there are 1, from 0 on"]),
    Row(1, "ctl --control ctl throttle iops=5", &["disk.img", "serve it with iops=0"]),
    Row(1, "ctl --control ctl throttle --image 7 iops=5", &["no image 7", "there are 1"]),
    Row(1, "ctl --control ctl mark x", &["nothing is recorded", "serve with --record"]),
    Row(1, "ctl --control ctl unplug 7:7", &["no lun 7:7", "ctl stats lists them"]),
    Row(
        1,
        "ctl --control ctl hotplug disk.img",
        &["hotplug: image disk.img", "same file as image disk.img", "give each its own"],
    ),
    Row(1, "ctl --control ctl hotplug link.img", &["hotplug: image link.img", "same file as image disk.img"]),
    Row(
        1,
        "ctl --control ctl hotplug other.img,cach=none",
        &["hotplug other.img,cach=none", "did you mean cache?"],
    ),
    Row(1, "ctl --control ctl hotplug other.img,lun=0:0", &["lun", "in use", "lun=0:7"]),
    Row(1, "ctl --control ctl hotplug other.img", &["other.img", "sandbox", "--hotplug-folder"]),
    Row(1, "ctl --control ctl hotplug ,,size=1M", &["no file name", "hotplug disk.img"]),
    Row(
        2,
        "ctl --control served stats",
        &["--control served: no answer", "check that it is the control socket"],
    ),
    Row(2, "serve --socket served --image other.img", &["socket served", "another program listens there"]),
];

/// What `replay` refuses of a recording that is there.
pub(crate) const RECORDED: &[Row] = &[
    Row(2, "replay rec --at 999 --out o", &["rec: there is no position 999", "give one from 0 to"]),
    Row(2, "replay rec --at 0 --out notes.txt", &["notes.txt: exists already", "give --out"]),
    Row(2, "replay rec --at 0 --out rec", &["rec: exists already", "give --out"]),
    Row(2, "replay rec --at 0 --out nodir/o", &["nodir/o", "No such file", "give --out"]),
    Row(
        2,
        "replay rec --at 0 --out o --base notes.txt",
        &["notes.txt: not the image that rec begins with", "give --base"],
    ),
    Row(2, "replay rec --at 0 --out o --base nofile", &["nofile", "No such file", "give --base"]),
    Row(2, "replay rec --state 0:999 --out o", &["--state 0:999", "count from 0"]),
    Row(
        2,
        "replay rec --crash-states 5 --out-dir notes.txt",
        &["--out-dir notes.txt", "File exists", "give another one"],
    ),
    Row(2, "replay rec --out o", &["--out: of what?", "give --at POSITION"]),
];
