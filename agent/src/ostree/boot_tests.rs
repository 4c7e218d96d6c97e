//! The counter of GRUB: with an editor that writes its words down, and with GRUB itself.

use super::super::ask;
use super::*;

/// What Fedora's relatives with greenboot have in it; and NestOS' shape, which only comments on it here.
const COUNTS: &str = "load_env\nif [ -n \"${boot_counter}\" ]; then\n  decrement boot_counter\nfi\nblscfg\n";
const STOCK: &str =
    "set pager=1\n# no boot_counter here, and no custom.cfg\nif [ -s $prefix/grubenv ]; then\n  load_env\nfi\nblscfg";
/// The lab image's, which shows the counter.
const LAB: &str = include_str!("../../../images/lab/overlay/usr/lib/nestos/grub.cfg");
/// The ways of Fedora CoreOS, of 2022 and of 2025.
const READS_BEFORE: &str = "if [ -f $prefix/user.cfg ]; then\n  source $prefix/user.cfg\nfi\n";
const READS_AFTER: &str = "if [ -f $prefix/custom.cfg ]; then\n  source $prefix/custom.cfg\nfi\n";

/// A system with these files below /boot, and an editor that writes its words down.
struct Node {
    root: tempfile::TempDir,
    counter: BootCounter,
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut node = Self::with("/nowhere", root, files);
        let [text, editor] = ["text", "grub2-editenv"].map(|name| node.root.path().join(name).display().to_string());
        std::fs::write(&text, "#!/bin/sh\necho \"$*\" >>\"${0%/*}/words\"\n").unwrap();
        // Written by another process, it is in nobody's way: no thread of ours has it open for writing.
        ask("install", &["-m", "755", &text, &editor]).unwrap();
        node.counter.editor = editor.into();
        node
    }

    /// With the system's own editor.
    fn real(files: &[(&str, &str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let node = Self::with("/usr/bin", root, files);
        std::fs::remove_file(&node.counter.block).unwrap();
        ask(&node.counter.editor.display().to_string(), &[&node.counter.block.display().to_string(), "create"])
            .unwrap();
        node
    }

    fn with(path: &str, root: tempfile::TempDir, files: &[(&str, &str)]) -> Self {
        for (name, text) in [("grub2/grubenv", "# GRUB Environment Block\n")].iter().chain(files) {
            let path = root.path().join("boot").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = BootCounter::find(root.path(), path);
        let counter = found.unwrap_or_else(|| BootCounter {
            editor: PathBuf::new(),
            block: root.path().join("boot/grub2/grubenv"),
            boot: root.path().join("boot"),
            devices: root.path().join("sys/dev/block"),
            own_mounts: OWN_MOUNTS,
        });
        Self { root, counter: counter.without_mounts() }
    }

    fn words(&self) -> String {
        let block = format!("{} ", self.counter.block.display());
        std::fs::read_to_string(self.root.path().join("words")).unwrap_or_default().replace(&block, "")
    }

    fn boot(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.root.path().join("boot").join(name)).ok()
    }
}

#[test]
fn a_configuration_that_counts_is_left_alone() {
    for files in [
        &[("grub2/grub.cfg", COUNTS)][..],
        &[("grub2/grub.cfg", STOCK), ("grub2/custom.cfg", "decrement boot_counter\n")],
        &[("grub2/grub.cfg", STOCK), ("efi/EFI/openEuler/grub.cfg", COUNTS)],
        // Nobody can tell.
        &[],
        &[("efi/EFI/openEuler/grub.cfg", "configfile /elsewhere.cfg\n")],
    ] {
        let node = Node::new(files);
        assert_eq!(node.counter.caution(), None, "{files:?}");
        node.counter.arm().unwrap();
        node.counter.disarm().unwrap();
        assert_eq!(node.words(), "set boot_counter=3 boot_success=0\nunset boot_counter\n");
        for (name, text) in files {
            assert_eq!(node.boot(name).as_deref(), Some(*text));
        }
        assert_eq!(node.boot("grub2/nkd-boot-counter.cfg"), None, "{files:?}");
    }
}

#[test]
fn a_configuration_that_does_not_count_is_taught_to_once() {
    let [user, custom] = [READS_BEFORE, READS_AFTER].map(|reads| format!("{STOCK}\n{reads}"));
    for (config, there, hook) in [
        (STOCK, None, "grub2/grub.cfg"),
        (LAB, None, "grub2/grub.cfg"),
        (&user, None, "grub2/user.cfg"),
        (&user, Some("set superusers=\"root\""), "grub2/user.cfg"),
        (&custom, None, "grub2/custom.cfg"),
        (&format!("{READS_BEFORE}{custom}"), Some("GRUB2_PASSWORD=x\n"), "grub2/custom.cfg"),
    ] {
        let mut files = vec![("grub2/grub.cfg", config)];
        files.extend(there.map(|text| (hook, text)));
        let node = Node::new(&files);
        assert_eq!(node.counter.caution(), None);
        let before = node.boot(hook).unwrap_or_default();
        node.counter.arm().unwrap();
        assert_eq!(node.boot(hook).unwrap(), format!("{before}\n{LINE}\n"), "{config}");
        assert_eq!(node.boot("grub2/nkd-boot-counter.cfg").as_deref(), Some(COUNTING));
        assert_eq!(node.words(), "set boot_counter=3 boot_success=0\n");
        // Again, and with what an agent of before wrote.
        node.counter.arm().unwrap();
        std::fs::write(node.root.path().join("boot/grub2/nkd-boot-counter.cfg"), "set boot_counter=7\n").unwrap();
        node.counter.arm().unwrap();
        assert_eq!(node.boot(hook).unwrap(), format!("{before}\n{LINE}\n"));
        assert_eq!(node.boot("grub2/nkd-boot-counter.cfg").as_deref(), Some(COUNTING));
        // A tool of the system that writes the file anew takes the line with it.
        std::fs::write(node.root.path().join("boot").join(hook), config).unwrap();
        node.counter.arm().unwrap();
        assert_eq!(node.boot(hook).unwrap(), format!("{config}\n{LINE}\n"));
    }
}

/// The tools of a distribution may come to count after we have begun to.
#[test]
fn what_we_have_added_goes_when_the_configuration_counts_by_itself() {
    let node = Node::new(&[("grub2/grub.cfg", STOCK)]);
    node.counter.arm().unwrap();
    let hooked = node.boot("grub2/grub.cfg").unwrap();
    std::fs::write(node.root.path().join("boot/grub2/grub.cfg"), format!("{COUNTS}\n{LINE}\n")).unwrap();
    node.counter.arm().unwrap();
    assert_eq!(node.boot("grub2/nkd-boot-counter.cfg"), None);
    assert_eq!(node.words(), "set boot_counter=3 boot_success=0\n".repeat(2));
    // And back.
    std::fs::write(node.root.path().join("boot/grub2/grub.cfg"), &hooked).unwrap();
    node.counter.arm().unwrap();
    assert_eq!(node.boot("grub2/nkd-boot-counter.cfg").as_deref(), Some(COUNTING));
    assert_eq!(node.boot("grub2/grub.cfg"), Some(hooked));
}

/// A block that is missing, and one that a power cut has left empty, with the system's own editor.
#[test]
fn a_block_that_is_not_there_or_empty_is_made() {
    let node = Node::real(&[("grub2/grub.cfg", STOCK)]);
    let set = "boot_counter=3\nboot_success=0\n";
    let found = || BootCounter::find(node.root.path(), "/usr/bin").unwrap().without_mounts();
    for spoil in [|path: &Path| std::fs::remove_file(path), |path: &Path| std::fs::write(path, "")] {
        spoil(&node.counter.block).unwrap();
        let counter = found();
        assert_eq!((counter.caution(), counter.disarm()), (None, Ok(())));
        counter.arm().unwrap();
        assert!(node.boot("grub2/grubenv").unwrap().contains(set));
        counter.disarm().unwrap();
        assert!(!node.boot("grub2/grubenv").unwrap().contains("boot_counter"));
    }
    std::fs::remove_dir_all(node.root.path().join("boot/grub2")).unwrap();
    assert!(BootCounter::find(node.root.path(), "/usr/bin").is_none());
}

#[test]
fn where_grub_cannot_write_nothing_counts_and_that_is_said() {
    let device = |node: &Node| {
        let device = std::fs::metadata(&node.counter.block).unwrap().dev();
        node.root.path().join(format!("sys/dev/block/{}:{}", major(device), minor(device)))
    };
    // Several paths to one disk are no such device.
    let node = Node::new(&[("grub2/grub.cfg", STOCK)]);
    std::fs::create_dir_all(device(&node).join("dm")).unwrap();
    std::fs::write(device(&node).join("dm/uuid"), "part1-mpath-36001405\n").unwrap();
    node.counter.arm().unwrap();
    assert_eq!((node.counter.caution(), node.words().as_str()), (None, "set boot_counter=3 boot_success=0\n"));
    for kind in ["md", "dm"] {
        let node = Node::new(&[("grub2/grub.cfg", STOCK)]);
        std::fs::create_dir_all(device(&node).join(kind)).unwrap();
        assert!(node.counter.caution().is_some_and(|why| why.contains("would stay down")));
        node.counter.arm().unwrap();
        assert_eq!(node.words(), "", "nothing counts it down");
        node.counter.disarm().unwrap();
        assert_eq!(node.words(), "unset boot_counter\n");
        assert_eq!(node.boot("grub2/grub.cfg").as_deref(), Some(STOCK));
    }
}

#[test]
fn a_block_that_cannot_be_edited_is_an_error() {
    let node = Node::new(&[("grub2/grub.cfg", COUNTS)]);
    ask("install", &["-m", "755", "/bin/false", &node.counter.editor.display().to_string()]).unwrap();
    node.counter.arm().unwrap_err();
    node.counter.disarm().unwrap_err();
}

#[test]
fn a_configuration_that_cannot_be_written_keeps_a_release_from_being_armed() {
    let node = Node::new(&[("grub2/grub.cfg", &format!("{STOCK}\n{READS_BEFORE}"))]);
    std::fs::create_dir(node.root.path().join("boot/grub2/nkd-boot-counter.cfg")).unwrap();
    node.counter.arm().unwrap_err();
    assert_eq!(node.words(), "");
}

/// GRUB itself, in a machine whose disk is the file system of a node's /boot.
#[test]
#[ignore = "needs QEMU and GRUB"]
fn grub_counts_as_it_is_told() {
    /// What a menu entry does: says its name on the serial line.
    const ENTRIES: &str = "menuentry new { echo \"=new\"; $end }\nmenuentry old { echo \"=old\"; halt }\n";
    const SERIAL: &str = "serial\nterminal_output serial\nset timeout=0\nset pager=1\n";
    let of = |parts: &[&str]| [&[SERIAL], parts].concat().concat();
    let shapes = [
        of(&[ENTRIES]),
        of(&["if [ -s $prefix/grubenv ]; then\n  load_env\nfi\n", READS_BEFORE, ENTRIES]),
        of(&[READS_BEFORE, ENTRIES, READS_AFTER]),
        // As Fedora CoreOS for a year and a half.
        of(&[READS_BEFORE, READS_BEFORE, ENTRIES]),
        // Its own default, which the counter overrules.
        of(&["set default=0\n", ENTRIES, "set fallback=1"]),
    ];
    for config in shapes {
        let end = |word: &str| config.replace("$end", word);
        let node = Node::real(&[("grub2/grub.cfg", &end("reboot"))]);
        node.counter.arm().unwrap();
        let disk = Disk::new(&node);
        assert_eq!(disk.boots(), ["new", "new", "new", "old"], "{config}");
        assert_eq!(disk.block("boot_counter"), "-1");
        assert_eq!(disk.boots(), ["old"], "until somebody says otherwise");

        let node = Node::real(&[("grub2/grub.cfg", &end("halt"))]);
        node.counter.arm().unwrap();
        let disk = Disk::new(&node);
        assert_eq!((disk.boots(), disk.block("boot_counter")), (vec!["new".to_owned()], "2".to_owned()));
        node.counter.disarm().unwrap();
        let disk = Disk::new(&node);
        assert_eq!((disk.boots(), disk.block("boot_counter")), (vec!["new".to_owned()], String::new()), "{config}");
    }
}

/// A file system made of a node's /boot, and the GRUB that starts from it.
struct Disk<'a> {
    node: &'a Node,
}

impl<'a> Disk<'a> {
    fn new(node: &'a Node) -> Self {
        let at = |name: &str| node.root.path().join(name).display().to_string();
        let modules = ["biosdisk", "ext2", "configfile", "normal", "serial", "terminal", "echo", "test", "loadenv"];
        let more = ["halt", "reboot"];
        let words = ["-O", "i386-pc", "-p", "(hd0)/grub2", "-o", &at("core.img")];
        ask("grub-mkimage", &[&words[..], &modules, &more].concat()).unwrap();
        // GRUB as a kernel for QEMU.
        let parts = ["/usr/lib/grub/i386-pc/lnxboot.img", &at("core.img")].map(|part| std::fs::read(part).unwrap());
        std::fs::write(at("grub.lkrn"), parts.concat()).unwrap();
        let _ = std::fs::remove_file(at("disk.raw"));
        ask("mke2fs", &["-q", "-t", "ext4", "-d", &at("boot"), &at("disk.raw"), "16M"]).unwrap();
        Self { node }
    }

    fn at(&self, name: &str) -> String {
        self.node.root.path().join(name).display().to_string()
    }

    /// The entries that were started until the machine was off.
    fn boots(&self) -> Vec<String> {
        let drive = format!("file={},format=raw,if=ide", self.at("disk.raw"));
        let kernel = self.at("grub.lkrn");
        let words = ["60", "qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"];
        let more = ["-serial", "stdio", "-kernel", &kernel, "-drive", &drive];
        let said = ask("timeout", &[&words[..], &more].concat()).unwrap();
        said.lines().filter_map(|line| line.trim().strip_prefix('=')).map(str::to_owned).collect()
    }

    /// What the environment block has of a name; empty: nothing.
    fn block(&self, name: &str) -> String {
        let text = ask("debugfs", &["-R", "cat /grub2/grubenv", &self.at("disk.raw")]).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    }
}
