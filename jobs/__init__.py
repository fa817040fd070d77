"""When and how often: backoff now; queues, schedules and retries as they come. Imports none of ours."""
