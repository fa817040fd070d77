"""When and how often: backoff now; queues and schedules as they come. Imports none of ours."""
