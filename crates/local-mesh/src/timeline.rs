//! The startup and the shutdown of a task as a timeline with the marks T0 to T4. It is printed in lines, and [`crate::drawing`] draws it.

use std::collections::BTreeMap;
use std::fmt;

use crate::events::{Event, What};
use crate::task::StopOrder;
use crate::watch::Stopped;

const TERM: i32 = 15;
const KILL: i32 = 9;

/// Within this time in nanoseconds, TERM to several containers counts as one moment. Docker gets one request for each.
const TOGETHER: i64 = 250_000_000;

/// A task's startup or shutdown. Times are nanoseconds since T0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The title.
    pub title: String,
    /// The name of the picture's file, without `.svg`.
    pub name: String,
    /// The moments, in order.
    pub moments: Vec<Moment>,
    /// The lanes, from top to bottom.
    pub lanes: Vec<Lane>,
}

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The time.
    pub at: i64,
    /// `T0` to `T4`, if the moment has such a mark.
    pub mark: Option<&'static str>,
    /// The container, or another actor.
    pub who: String,
    /// What happened.
    pub what: String,
}

/// One bar of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The container, or the name of an observation.
    pub name: String,
    /// Whether the lane shows a container. Otherwise it shows an observation from outside.
    pub container: bool,
    /// The begin; `None` if it is before T0.
    pub from: Option<i64>,
    /// The end; `None` if it continues.
    pub to: Option<i64>,
    /// How it ended.
    pub end: String,
    /// The marks on the bar.
    pub ticks: Vec<(i64, Tick)>,
}

/// A mark on the bar of a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// The health check passed for the first time.
    Healthy,
    /// Docker sent TERM.
    Term,
    /// Docker sent KILL.
    Kill,
}

fn exit(code: i64) -> String {
    format!("exited {code}")
}

/// The time of a container's first event of one kind.
fn first(events: &[&Event], container: &str, kind: impl Fn(&What) -> bool) -> Option<i64> {
    events.iter().find(|event| event.container == container && kind(&event.what)).map(|event| event.at)
}

/// The containers of these events, in the order of their first events. The holder of the network namespace is not included.
fn containers<'a>(events: &[&'a Event]) -> Vec<&'a str> {
    let mut names = Vec::new();
    for event in events.iter().filter(|event| !event.holder) {
        if !names.contains(&event.container.as_str()) {
            names.push(event.container.as_str());
        }
    }
    names
}

/// The startup of every task that started within these events. T0: the task starts. T1: its proxy starts. T2: the proxy's public
/// listener is open, and the app starts.
#[must_use]
pub fn startups(events: &[Event]) -> Vec<Timeline> {
    let mut tasks: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in events {
        tasks.entry(&event.task).or_default().push(event);
    }
    tasks.into_iter().filter_map(|(task, events)| startup(task, events)).collect()
}

fn startup(task: &str, mut events: Vec<&Event>) -> Option<Timeline> {
    events.sort_by_key(|event| event.at);
    let begin = events.iter().position(|event| event.holder && event.what == What::Started)?;
    let (zero, events) = (events[begin].at, &events[begin..]);
    let moments = events.iter().map(|event| {
        let (mark, what) = startup_moment(event);
        let who = if event.holder { "(task)".to_owned() } else { event.container.clone() };
        Moment { at: event.at - zero, mark, who, what }
    });
    let lanes = containers(events).into_iter().map(|container| {
        let of = |kind: fn(&What) -> bool| first(events, container, kind).map(|at| at - zero);
        let exited = events.iter().find_map(|event| match event.what {
            What::Exited(code) if event.container == container => Some((event.at - zero, code)),
            _ => None,
        });
        let healthy = of(|what| *what == What::Healthy);
        Lane {
            name: container.to_owned(),
            container: true,
            from: of(|what| *what == What::Started),
            to: exited.map(|(at, _)| at),
            end: exited.map_or(String::new(), |(_, code)| exit(code)),
            ticks: healthy.map(|at| (at, Tick::Healthy)).into_iter().collect(),
        }
    });
    Some(Timeline {
        title: format!("task {task} starts"),
        name: format!("startup-{task}"),
        lanes: lanes.collect(),
        moments: moments.collect(),
    })
}

fn startup_moment(event: &Event) -> (Option<&'static str>, String) {
    match (&event.what, event.container.as_str()) {
        (What::Started, _) if event.holder => (Some("T0"), "the task starts".to_owned()),
        (What::Started, "sidecar-proxy" | "dataplane") => (Some("T1"), "started".to_owned()),
        (What::Healthy, "sidecar-proxy" | "dataplane") => {
            (Some("T2"), "healthy: the public listener is open".to_owned())
        }
        (What::Exited(0), "mesh-init") => {
            (None, "registered service and proxy, wrote the bootstrap, exited 0".to_owned())
        }
        (What::Exited(0), "consul-config") => (None, "wrote the agent's configuration, exited 0".to_owned()),
        (What::Started, _) => (None, "started".to_owned()),
        (What::Healthy, _) => (None, "healthy".to_owned()),
        (What::Signalled(number), _) => (None, format!("got signal {number}")),
        (What::Exited(code), _) => (None, exit(*code)),
    }
}

/// The shutdown of a task. T0: the first TERM. T1: health-sync has exited. T2: every other Envoy has removed
/// the task's endpoint; if none had it, the task's node has left the catalog. T3: all containers have exited. T4: KILL, if a container
/// needed it. `None` if no container got TERM.
#[must_use]
pub fn shutdown(task: &str, order: StopOrder, stopped: &Stopped) -> Option<Timeline> {
    let events = stopped.events.iter().collect::<Vec<_>>();
    let terms = events.iter().filter(|event| event.what == What::Signalled(TERM) && !event.holder);
    let zero = terms.map(|event| event.at).min()?;
    let names = containers(&events);
    let exited = |container: &str| first(&events, container, |what| matches!(what, What::Exited(_)));
    let last_exit = names.iter().filter_map(|name| exited(name)).max();
    let out_of_rotation = if stopped.removed.is_empty() {
        // No other Envoy had the endpoint, so T2 is when the node leaves the catalog.
        stopped.left
    } else if stopped.removed.values().all(Option::is_some) {
        stopped.removed.values().max().copied().flatten()
    } else {
        None
    };

    let mut moments = Vec::new();
    let mut add = |at: Option<i64>, mark, who: &str, what: &str| {
        let moment = |at: i64| Moment { at: at - zero, mark, who: who.to_owned(), what: what.to_owned() };
        moments.extend(at.map(moment));
    };
    for (at, names) in together(&events) {
        add(Some(at), (at == zero).then_some("T0"), "TERM", &format!("to {}", names.join(", ")));
    }
    add(stopped.checks_critical, None, "Consul", "checks of service and proxy are critical");
    let mark = (stopped.left == out_of_rotation).then_some("T2");
    let left = if stopped.has_agent { "the node has left the catalog" } else { "the services have left the catalog" };
    add(stopped.left, mark, "Consul", left);
    for (name, at) in &stopped.removed {
        let mark = (*at == out_of_rotation).then_some("T2");
        add(*at, mark, &format!("{name}'s Envoy"), "no longer sends to this task");
    }
    add(stopped.last_inbound, None, "Envoy", "last inbound request");
    add(stopped.last_outbound, None, "Envoy", "last outbound request");
    for event in events.iter().filter(|event| !event.holder) {
        match event.what {
            What::Exited(code) => {
                let mark = match event.container.as_str() {
                    "health-sync" => Some("T1"),
                    _ if Some(event.at) == last_exit => Some("T3"),
                    _ => None,
                };
                add(Some(event.at), mark, &event.container, &exit(code));
            }
            What::Signalled(KILL) => add(Some(event.at), Some("T4"), "KILL", &format!("to {}", event.container)),
            _ => {}
        }
    }
    // The exit of health-sync has the mark T1. If health-sync exits last, T3 gets a line of its own.
    if let Some(at) = last_exit
        && !moments.iter().any(|moment| moment.mark == Some("T3"))
    {
        let (who, what) = ("(task)".to_owned(), "all containers have exited".to_owned());
        moments.push(Moment { at: at - zero, mark: Some("T3"), who, what });
    }
    moments.sort_by_key(|moment| moment.at);

    let mut lanes = Vec::new();
    for name in &names {
        let code = events.iter().find_map(|event| match event.what {
            What::Exited(code) if event.container == *name => Some(code),
            _ => None,
        });
        let signals = events.iter().filter(|event| event.container == *name).filter_map(|event| match event.what {
            What::Signalled(TERM) => Some((event.at - zero, Tick::Term)),
            What::Signalled(KILL) => Some((event.at - zero, Tick::Kill)),
            _ => None,
        });
        lanes.push(Lane {
            name: (*name).to_owned(),
            container: true,
            from: None,
            to: exited(name).map(|at| at - zero),
            end: code.map_or(String::new(), exit),
            ticks: signals.collect(),
        });
    }
    lanes.sort_by_key(|lane| lane.to);
    let mut observed = |name: String, to: Option<i64>, end: &str| {
        let to = to.map(|at| at - zero);
        lanes.push(Lane { name, container: false, from: None, to, end: end.to_owned(), ticks: Vec::new() });
    };
    observed("checks passing".to_owned(), stopped.checks_critical, "critical");
    let (what, left) = match stopped.has_agent {
        true => ("node in the catalog", "left the cluster"),
        false => ("services in the catalog", "deregistered"),
    };
    observed(what.to_owned(), stopped.left, left);
    for (name, at) in &stopped.removed {
        observed(format!("endpoint in {name}'s Envoy"), *at, "removed");
    }
    for (name, at) in [("inbound requests", stopped.last_inbound), ("outbound requests", stopped.last_outbound)] {
        if at.is_some() {
            observed(name.to_owned(), at, "last one");
        }
    }
    let how = match order {
        StopOrder::AllAtOnce => "TERM to all containers at once",
        StopOrder::DependsOn => "TERM to each container once those that depend on it have stopped",
    };
    Some(Timeline { title: format!("task {task} stops: {how}"), name: format!("shutdown-{task}"), moments, lanes })
}

/// The containers that got TERM, grouped by time.
fn together<'a>(events: &[&'a Event]) -> Vec<(i64, Vec<&'a str>)> {
    let mut all: Vec<(i64, Vec<&str>)> = Vec::new();
    for event in events.iter().filter(|event| event.what == What::Signalled(TERM) && !event.holder) {
        match all.last_mut() {
            Some((at, names)) if event.at - *at < TOGETHER => names.push(&event.container),
            _ => all.push((event.at, vec![&event.container])),
        }
    }
    all
}

/// One line for each moment, with its offset from T0 in ms.
impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for Moment { at, mark, who, what } in &self.moments {
            writeln!(f, "  {:2} {:>7} ms  {who:<14} {what}", mark.unwrap_or_default(), at / 1_000_000)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(ms: i64, container: &str, what: What) -> Event {
        let holder = container == "pause";
        Event { at: ms * 1_000_000, task: "web".to_owned(), container: container.to_owned(), holder, what }
    }

    #[test]
    fn a_startup_has_its_marks_at_offsets_from_t0() {
        let events = [
            event(1500, "sidecar-proxy", What::Started),
            event(900, "app", What::Exited(0)),
            event(1000, "pause", What::Started),
            event(1300, "mesh-init", What::Started),
            event(1400, "mesh-init", What::Exited(0)),
            event(2600, "sidecar-proxy", What::Healthy),
            event(2700, "app", What::Started),
        ];
        let timeline = startups(&events).remove(0);
        let text = timeline.to_string();
        let lines = text.lines().collect::<Vec<_>>();
        assert_eq!(lines[0], "task web starts");
        assert_eq!(lines[1], "  T0       0 ms  (task)         the task starts");
        assert!(lines[3].contains("400 ms  mesh-init"), "{text}");
        assert!(lines[4].starts_with("  T1     500 ms  sidecar-proxy"), "{text}");
        assert!(lines[5].starts_with("  T2    1600 ms  sidecar-proxy"), "{text}");
        assert_eq!(lines.len(), 7, "what was before the task's start is left out: {text}");
        let lanes = timeline.lanes.iter().map(|lane| (lane.name.as_str(), lane.from.unwrap() / 1_000_000, lane.to));
        let lanes = lanes.collect::<Vec<_>>();
        assert_eq!(lanes, [("mesh-init", 300, Some(400_000_000)), ("sidecar-proxy", 500, None), ("app", 1700, None)]);
    }

    #[test]
    fn a_task_without_a_start_has_no_timeline() {
        assert_eq!(startups(&[event(1, "app", What::Started)]), []);
    }

    fn stopped() -> Stopped {
        let ms = |ms: i64| Some(ms * 1_000_000);
        Stopped {
            events: vec![
                event(1000, "consul-client", What::Signalled(TERM)),
                event(1010, "health-sync", What::Signalled(TERM)),
                event(1020, "app", What::Signalled(TERM)),
                event(1100, "health-sync", What::Exited(0)),
                event(6000, "app", What::Signalled(TERM)),
                event(7000, "app", What::Exited(0)),
                event(31_000, "consul-client", What::Signalled(KILL)),
                event(31_100, "consul-client", What::Exited(137)),
                event(31_200, "pause", What::Signalled(TERM)),
            ],
            checks_critical: ms(1200),
            has_agent: true,
            left: ms(2000),
            removed: BTreeMap::from([("other".to_owned(), ms(1300)), ("web".to_owned(), ms(1400))]),
            last_inbound: ms(1350),
            last_outbound: None,
            samples: Vec::new(),
        }
    }

    #[test]
    fn a_shutdown_has_its_marks_at_term_exits_and_kill() {
        let timeline = shutdown("web", StopOrder::AllAtOnce, &stopped()).unwrap();
        let marks = timeline.moments.iter().filter_map(|moment| Some((moment.mark?, moment.at / 1_000_000)));
        let marks = marks.collect::<Vec<_>>();
        assert_eq!(marks, [("T0", 0), ("T1", 100), ("T2", 400), ("T4", 30_000), ("T3", 30_100)]);
        let text = timeline.to_string();
        assert!(text.contains("T0       0 ms  TERM           to consul-client, health-sync, app"), "{text}");
        assert!(text.contains("5000 ms  TERM           to app\n"), "{text}");
    }

    #[test]
    fn t3_has_its_own_line_if_health_sync_exits_last() {
        let mut stopped = stopped();
        stopped.events.push(event(32_000, "health-sync", What::Exited(0)));
        stopped.events.retain(|event| event.at != 1_100_000_000);
        let text = shutdown("web", StopOrder::AllAtOnce, &stopped).unwrap().to_string();
        assert!(text.contains("  T1   31000 ms  health-sync    exited 0\n  T3   31000 ms  (task) "), "{text}");
        assert_eq!(text.matches("T3").count(), 1, "{text}");
    }

    #[test]
    fn without_downstreams_t2_is_when_the_node_has_left() {
        let stopped = Stopped { removed: BTreeMap::new(), ..stopped() };
        let timeline = shutdown("web", StopOrder::AllAtOnce, &stopped).unwrap();
        assert!(timeline.lanes.iter().all(|lane| !lane.name.starts_with("endpoint")));
        assert!(timeline.lanes.iter().all(|lane| lane.name != "outbound requests"), "there was no load");
        let left = timeline.moments.iter().find(|moment| moment.what.contains("left")).unwrap();
        assert_eq!((left.at, left.mark), (1_000_000_000, Some("T2")));
    }
}
