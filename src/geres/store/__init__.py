"""The only place that changes state: functions of an open transaction, and their SQL."""
