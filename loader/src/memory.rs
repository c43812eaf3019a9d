//! How much memory there is.

/// Memory that can still be had: what the machine has available, or less where a cgroup limits it.
pub fn available_memory() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| kib(&text, "MemAvailable:"))
        .map_or(u64::MAX, |kib| kib << 10);
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path =
            text.lines().find_map(|line| line.strip_prefix("0::"))?.trim_start_matches('/').to_string();
        let folder = format!("/sys/fs/cgroup/{path}");
        let limit = number(&format!("{folder}/memory.max"))?;
        // The group's own page cache gives way; anonymous memory does not.
        let used = number(&format!("{folder}/memory.current"))?;
        let stat = std::fs::read_to_string(format!("{folder}/memory.stat")).ok()?;
        let cache = stat.lines().find_map(|line| line.strip_prefix("file "))?.parse::<u64>().ok()?;
        Some(limit.saturating_sub(used.saturating_sub(cache)))
    });
    machine.min(cgroup.unwrap_or(u64::MAX))
}

/// A figure of /proc/meminfo or /proc/PID/status, in KiB.
pub(crate) fn kib(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        assert!((1 << 20..1 << 50).contains(&available_memory()));
    }
}
