//! How much memory there is, and what limits it.
//!
//! ```text
//!  available = the least of  MemAvailable of the machine
//!                            limit - use, of the process's control group and each of its parents (v1 and v2)
//!                            RLIMIT_AS (ulimit -v) - what the process has mapped
//! ```
//!
//! Slurm, systemd and Kubernetes often set the limit on a parent group, and machines with cgroup v1 are still common on
//! clusters. Page cache that a group is charged for does not count as used: it is given back before anybody is killed.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Memory that can still be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Available {
    /// Bytes.
    pub bytes: u64,
    limit: Limit,
}

/// What keeps it from being more.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Limit {
    Machine,
    /// The control group's folder.
    Group(PathBuf),
    /// `ulimit -v`.
    Process,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("on this machine"),
            Self::Group(folder) => {
                write!(f, "under the memory limit of the control group {folder:?}")
            }
            Self::Process => f.write_str("under the limit of this process (ulimit -v)"),
        }
    }
}

impl fmt::Display for Available {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB are available {}", self.bytes >> 20, self.limit)
    }
}

/// What can still be had by this process.
pub fn available_memory() -> Available {
    available_below(Path::new("/"))
        .into_iter()
        .chain(of_process())
        .min_by_key(|available| available.bytes)
        .unwrap_or(Available { bytes: u64::MAX, limit: Limit::Machine })
}

/// What the files of /proc and of the control groups say; they are looked for below `root`.
fn available_below(root: &Path) -> Vec<Available> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = kib(&read("proc/meminfo"), "MemAvailable:");
    let machine = machine.map(|kib| Available { bytes: kib << 10, limit: Limit::Machine });
    let groups = groups(&read("proc/self/cgroup"), &read("proc/self/mountinfo"));
    let limited = groups.iter().filter_map(|group| {
        let bytes = group.available(&root.join(group.folder.strip_prefix("/").unwrap_or(&group.folder)))?;
        Some(Available { bytes, limit: Limit::Group(group.folder.clone()) })
    });
    machine.into_iter().chain(limited).collect()
}

/// What `ulimit -v` leaves.
fn of_process() -> Option<Available> {
    let limit = getrlimit(Resource::As).current?;
    let used = kib(&std::fs::read_to_string("/proc/self/status").ok()?, "VmSize:")? << 10;
    Some(Available { bytes: limit.saturating_sub(used), limit: Limit::Process })
}

/// A control group with a memory controller.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    unified: bool,
}

impl Group {
    /// Bytes that the group may still take; `None` when it has no limit. `folder` is where its files lie.
    fn available(&self, folder: &Path) -> Option<u64> {
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        // "max" of v2 is no number; v1 says "no limit" with one that no machine has.
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok().filter(|&bytes| bytes < 1 << 60);
        let (limit, used) = if self.unified {
            // Above memory.high a group is slowed down until it hardly moves.
            let limits = [number("memory.max"), number("memory.high")];
            (limits.into_iter().flatten().min()?, number("memory.current")?)
        } else {
            (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?)
        };
        // v1 counts the groups below only in the lines that begin with "total_".
        let prefix = if self.unified { "" } else { "total_" };
        let stat = text("memory.stat").unwrap_or_default();
        let cached = |key: &str| {
            let key = format!("{prefix}{key} ");
            stat.lines().find_map(|line| line.strip_prefix(&key)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        // Not "file" and "cache": shared memory counts in them, and it stays.
        let cache = cached("inactive_file") + cached("active_file");
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    }
}

/// The groups of a process and their parents, as far as they are mounted here, innermost first.
///
/// `cgroup` and `mountinfo` are the files of /proc/self: proc_pid_cgroup(5) and proc_pid_mountinfo(5).
fn groups(cgroup: &str, mountinfo: &str) -> Vec<Group> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let mut groups = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let unified = controllers.is_empty();
        if !unified && !controllers.split(',').any(|controller| controller == "memory") {
            continue;
        }
        let Some(mount) = mounts.iter().find(|mount| mount.unified == unified) else { continue };
        // In a container the mount shows the group from its own folder on. A path outside of it cannot be seen here;
        // the folder that is mounted then is the one that counts.
        let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
        let hidden = below.components().any(|part| part == std::path::Component::ParentDir);
        let innermost = if hidden { mount.folder.clone() } else { mount.folder.join(below) };
        let parents = innermost.ancestors().take_while(|folder| folder.starts_with(&mount.folder));
        groups.extend(parents.map(|folder| Group { folder: folder.to_owned(), unified }));
    }
    groups
}

/// Where a hierarchy of control groups with a memory controller is mounted.
#[derive(Debug)]
struct Mount {
    /// The folder of the hierarchy that is mounted.
    root: PathBuf,
    /// Where.
    folder: PathBuf,
    unified: bool,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let (system, _, options) = (kind.next()?, kind.next()?, kind.next()?);
        let unified = system == "cgroup2";
        let is_memory = system == "cgroup" && options.split(',').any(|option| option == "memory");
        if !unified && !is_memory {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        Some(Self { root: plain(fields.next()?), folder: plain(fields.next()?), unified })
    }
}

/// mountinfo writes blanks and backslashes as octal numbers.
fn plain(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (octal, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(octal, character);
    }
    text.into()
}

/// A figure of /proc/meminfo or /proc/PID/status, in KiB.
pub(crate) fn kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      37 31 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    /// A machine of these files, with 8 GiB available.
    fn machine(cgroup: &str, mountinfo: &str, files: &[(&str, String)]) -> Available {
        let root = tempfile::tempdir().unwrap();
        let meminfo = format!("MemTotal: 16000000 kB\nMemAvailable: {} kB\n", 8 << 20);
        let proc = [
            ("proc/meminfo", meminfo),
            ("proc/self/cgroup", cgroup.into()),
            ("proc/self/mountinfo", mountinfo.into()),
        ];
        for (path, text) in proc.iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        available_below(root.path()).into_iter().min_by_key(|available| available.bytes).unwrap()
    }

    /// The files of a v2 group, of which 30 MiB are page cache and 20 MiB shared memory.
    fn v2(folder: &str, max: &str, high: &str, used: u64) -> Vec<(&'static str, String)> {
        let file = |name: &str| -> &'static str { format!("sys/fs/cgroup{folder}/{name}").leak() };
        let stat = format!(
            "anon 1\nfile {}\nshmem {}\ninactive_file {}\nactive_file {}\n",
            50 * MIB,
            20 * MIB,
            25 * MIB,
            5 * MIB
        );
        vec![
            (file("memory.max"), max.into()),
            (file("memory.high"), high.into()),
            (file("memory.current"), format!("{}\n", used * MIB)),
            (file("memory.stat"), stat),
        ]
    }

    fn v1(folder: &str, limit: u64, used: u64) -> Vec<(&'static str, String)> {
        let file = |name: &str| -> &'static str { format!("sys/fs/cgroup/memory{folder}/{name}").leak() };
        let stat =
            format!("inactive_file 7\ntotal_inactive_file {}\ntotal_active_file {}\n", 25 * MIB, 5 * MIB);
        vec![
            (file("memory.limit_in_bytes"), format!("{limit}\n")),
            (file("memory.usage_in_bytes"), format!("{}\n", used * MIB)),
            (file("memory.stat"), stat),
        ]
    }

    fn group(folder: &str, mib: u64) -> Available {
        Available { bytes: mib * MIB, limit: Limit::Group(folder.into()) }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!((1 << 20..1 << 50).contains(&available_memory().bytes));
    }

    #[test]
    fn without_control_groups_the_machine_is_the_limit() {
        let all = Available { bytes: 8 << 30, limit: Limit::Machine };
        assert_eq!(machine("", "", &[]), all);
        assert_eq!(machine("0::/\n", "", &[]), all, "nothing is mounted");
        assert_eq!(machine("0::/a\n", V2, &v2("/a", "max", "max", 100)), all);
        assert_eq!(machine("4:memory:/a\n", V1, &v1("/a", 9_223_372_036_854_771_712, 100)), all);
        assert_eq!(machine("garbage\n:\n0::\n", "x - y\n - \n", &[]), all);
    }

    #[test]
    fn a_group_s_page_cache_is_available_and_its_shared_memory_is_not() {
        let files = v2("/a", &(400 * MIB).to_string(), "max", 100);
        assert_eq!(machine("0::/a\n", V2, &files), group("/sys/fs/cgroup/a", 330));
    }

    #[test]
    fn the_limit_of_a_parent_group_counts() {
        let mut files = v2("/slurm/job_1/step_0", "max", "max", 100);
        files.extend(v2("/slurm/job_1", &(500 * MIB).to_string(), "max", 300));
        files.extend(v2("/slurm", &(4000 * MIB).to_string(), "max", 3000));
        assert_eq!(machine("0::/slurm/job_1/step_0\n", V2, &files), group("/sys/fs/cgroup/slurm/job_1", 230));
    }

    #[test]
    fn memory_high_is_a_limit() {
        let files = v2("/a", &(900 * MIB).to_string(), &(400 * MIB).to_string(), 100);
        assert_eq!(machine("0::/a\n", V2, &files).bytes, 330 * MIB);
    }

    #[test]
    fn version_1_is_seen_beside_an_empty_version_2() {
        let cgroup = "5:cpu,cpuacct:/job\n4:memory:/slurm/job\n0::/\n";
        let mut files = v1("/slurm/job", 9_223_372_036_854_771_712, 100);
        files.extend(v1("/slurm", 400 * MIB, 200));
        assert_eq!(machine(cgroup, V1, &files), group("/sys/fs/cgroup/memory/slurm", 230));
    }

    #[test]
    fn in_a_container_the_group_is_the_root_of_the_mount() {
        let limited = |folder| v1(folder, 400 * MIB, 100);
        let mounted = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert_eq!(
            machine("4:memory:/docker/1f\n", mounted, &limited("")),
            group("/sys/fs/cgroup/memory", 330)
        );
        assert_eq!(
            machine("4:memory:/docker/1f/x\n", mounted, &limited("/x")),
            group("/sys/fs/cgroup/memory/x", 330)
        );
        assert_eq!(
            machine("4:memory:/elsewhere\n", mounted, &limited("")),
            group("/sys/fs/cgroup/memory", 330)
        );
        let files = v2("", &(400 * MIB).to_string(), "max", 100);
        assert_eq!(machine("0::/../other\n", V2, &files), group("/sys/fs/cgroup", 330));
    }

    #[test]
    fn a_mount_with_a_blank_in_its_path_is_found() {
        let mounted = "30 23 0:26 / /sys/fs/cgroup/a\\040b rw - cgroup2 none rw";
        let files = v2("/a b/c", &(400 * MIB).to_string(), "max", 100);
        assert_eq!(machine("0::/c\n", mounted, &files), group("/sys/fs/cgroup/a b/c", 330));
    }

    #[test]
    fn the_limit_is_named() {
        assert_eq!(
            group("/sys/fs/cgroup/slurm/job_1", 230).to_string(),
            "230 MiB are available under the memory limit of the control group \"/sys/fs/cgroup/slurm/job_1\""
        );
        let process = Available { bytes: 5 * MIB, limit: Limit::Process };
        assert_eq!(process.to_string(), "5 MiB are available under the limit of this process (ulimit -v)");
    }
}
